"""An HTTP server in the form of OpenAI's API, where each request names its own state."""
