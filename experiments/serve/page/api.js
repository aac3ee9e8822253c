// Calls of the server: JSON, files, and answers that stream.

/** Seconds since the page was loaded. */
export const seconds = () => performance.now() / 1000;

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function checked(answer) {
  if (answer.ok) return answer;
  let message = `the server answers ${answer.status}`;
  try {
    message = (await answer.json()).error.message;
  } catch {
    // Not an error of the API: the status has to do.
  }
  throw new Error(message);
}

export async function get(path, key) {
  return (await checked(await fetch(path, { headers: headers(key) }))).json();
}

/** The address of a picture, which needs the key as other calls do. */
export async function picture(path, key) {
  const answer = await checked(await fetch(path, { headers: headers(key) }));
  return URL.createObjectURL(await answer.blob());
}

/** Gives the parsed events of a streamed answer one by one. */
export async function* stream(path, body, key, signal) {
  const answer = await checked(await fetch(path, {
    method: "POST",
    headers: { ...headers(key), "Content-Type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  }));
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
      if (!data || data === "[DONE]") continue;
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}
