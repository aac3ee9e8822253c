"""How threads share the outputs of a product, as LLVM IR.

Each thread reads a range of the weight of its own, piece by piece, since memory is read fastest in order; then it takes
pieces of the ranges of others that are left. The caller waits for those pieces alone that another thread has begun, so
that no thread waits for one that is waiting itself. The thread that is the last to leave frees the job.

A decoding step is a chain of short products, and to wake a thread takes as long as one of them. A helper therefore
stays awake for a while after a job, at one of the `PLACES`, where the next product finds it, of whatever kind.
"""

import ctypes
import platform
import sys

MAX_THREADS = 8
"""Threads of one product at most: memory is read as fast as it goes by fewer than a server has."""
PIECE = 2**15
"""Numbers of a weight that a thread takes at a time, about."""
WORTH_SHARING = 2**14
"""Numbers of a weight for each thread that takes part, at least."""
WORTH_WAKING = 2**18
"""Numbers of a weight for which threads are woken; smaller ones are shared with those that are awake."""
PAUSES = 2048
"""How long a helper stays awake, in instructions that let a processor rest: about 0.1 ms."""
PAUSE = {
    "x86": ("@llvm.x86.sse2.pause()", "@llvm.x86.sse2.pause()"),
    "arm": ("@llvm.aarch64.isb(i32)", "@llvm.aarch64.isb(i32 15)"),
}
"""Declaration and call of that instruction."""
FIELDS = (
    "ptr %weight.data", "ptr %scales.data", "ptr %x.data", "ptr %y.data", "i64 %outputs", "i64 %inputs", "i64 %rows",
    "i64 %groups", "i64 %pieces", "i64 %threads", "i64 %threads", "i64 1", "i64 0",
    f"[{MAX_THREADS} x i64] zeroinitializer", "ptr @outputs",
)  # fmt: skip
"""What `%job` holds: the arrays, the sizes, pieces of a range, ranges, threads that have not left, threads that came,
pieces that are done, of each range the pieces that are begun, and the function that computes outputs."""

LIBC = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
LIBC.calloc.restype = ctypes.c_void_p
LIBC.calloc.argtypes = [ctypes.c_size_t, ctypes.c_size_t]
LINE = 64
"""Bytes of a cache line; each place has one."""
PLACES = -(-LIBC.calloc(MAX_THREADS, LINE) // LINE) * LINE
"""Address of the places of helpers, which all kinds of products share: 0, 1 where a helper waits, or its next job. It
is never freed: a helper may wait while Python ends."""

IR = """
%job = type { $types }

declare i64 @llvm.umin.i64(i64, i64)
declare i64 @llvm.umax.i64(i64, i64)
declare void $declared_pause

define private void @leave(ptr %job) {
  %count = getelementptr %job, ptr %job, i32 0, i32 10
  %before = atomicrmw sub ptr %count, i64 1 acq_rel
  %last = icmp eq i64 %before, 1
  br i1 %last, label %free, label %end
free:
  call void inttoptr (i64 $release to ptr)(ptr %job)
  br label %end
end:
  ret void
}

define private void @work(ptr %job, i64 %first) {
  %outputs.at = getelementptr %job, ptr %job, i32 0, i32 4
  %pieces.at = getelementptr %job, ptr %job, i32 0, i32 8
  %ranges.at = getelementptr %job, ptr %job, i32 0, i32 9
  %done = getelementptr %job, ptr %job, i32 0, i32 12
  %compute.at = getelementptr %job, ptr %job, i32 0, i32 14
  %compute = load ptr, ptr %compute.at
  %outputs = load i64, ptr %outputs.at
  %pieces = load i64, ptr %pieces.at
  %ranges = load i64, ptr %ranges.at
  %all = mul i64 %ranges, %pieces
  br label %look
look:
  %tried = phi i64 [ 0, %0 ], [ %tried.next, %take ]
  %more = icmp ult i64 %tried, %ranges
  br i1 %more, label %range, label %end
range:
  %turn = add i64 %first, %tried
  %own = urem i64 %turn, %ranges
  %tried.next = add i64 %tried, 1
  %begun = getelementptr %job, ptr %job, i32 0, i32 13, i64 %own
  %before = mul i64 %own, %pieces
  br label %take
take:
  %index = atomicrmw add ptr %begun, i64 1 monotonic
  %left = icmp ult i64 %index, %pieces
  br i1 %left, label %begin, label %look
begin:
  %piece = add i64 %before, %index
  %after = add i64 %piece, 1
  %from.product = mul i64 %outputs, %piece
  %to.product = mul i64 %outputs, %after
  %from = udiv i64 %from.product, %all
  %to = udiv i64 %to.product, %all
  call void %compute(ptr %job, i64 %from, i64 %to)
  %counted = atomicrmw add ptr %done, i64 1 release
  br label %take
end:
  ret void
}

define private ptr @next_job() {
  br label %look
look:
  %index = phi i64 [ 0, %0 ], [ %index.next, %taken ]
  %exists = icmp ult i64 %index, $helpers
  br i1 %exists, label %claim, label %none
claim:
  %place = getelementptr [8 x ptr], ptr inttoptr (i64 $places to ptr), i64 %index
  %claimed = cmpxchg ptr %place, ptr null, ptr inttoptr (i64 1 to ptr) acq_rel monotonic
  %own = extractvalue { ptr, i1 } %claimed, 1
  br i1 %own, label %wait, label %taken
taken:
  %index.next = add i64 %index, 1
  br label %look
wait:
  %pauses = phi i64 [ 0, %claim ], [ %pauses.next, %pause ]
  %held = load atomic ptr, ptr %place acquire, align 8
  %waiting = icmp eq ptr %held, inttoptr (i64 1 to ptr)
  br i1 %waiting, label %pause, label %take
pause:
  call void $pause
  %pauses.next = add i64 %pauses, 1
  %patient = icmp ult i64 %pauses.next, $pauses
  br i1 %patient, label %wait, label %take
take:
  %found = atomicrmw xchg ptr %place, ptr null acq_rel
  %given = icmp ne ptr %found, inttoptr (i64 1 to ptr)
  %job = select i1 %given, ptr %found, ptr null
  ret ptr %job
none:
  ret ptr null
}

define private i1 @hand(ptr %job) {
  br label %look
look:
  %index = phi i64 [ 0, %0 ], [ %index.next, %on ]
  %exists = icmp ult i64 %index, $helpers
  br i1 %exists, label %see, label %none
see:
  %place = getelementptr [8 x ptr], ptr inttoptr (i64 $places to ptr), i64 %index
  %held = load atomic ptr, ptr %place monotonic, align 8
  %waiting = icmp eq ptr %held, inttoptr (i64 1 to ptr)
  br i1 %waiting, label %put, label %on
put:
  %swapped = cmpxchg ptr %place, ptr inttoptr (i64 1 to ptr), ptr %job acq_rel monotonic
  %done = extractvalue { ptr, i1 } %swapped, 1
  br i1 %done, label %handed, label %on
on:
  %index.next = add i64 %index, 1
  br label %look
handed:
  ret i1 true
none:
  ret i1 false
}

define private void @task(ptr %first) {
  br label %begin
begin:
  %job = phi ptr [ %first, %0 ], [ %next, %begin ]
  %came.at = getelementptr %job, ptr %job, i32 0, i32 11
  %came = atomicrmw add ptr %came.at, i64 1 monotonic
  call void @work(ptr %job, i64 %came)
  call void @leave(ptr %job)
  %next = call ptr @next_job()
  %more = icmp ne ptr %next, null
  br i1 %more, label %begin, label %end
end:
  ret void
}
"""


def values() -> dict[str, object]:
    """Returns what the names with $ in `IR` stand for."""
    declared, called = PAUSE["x86" if platform.machine().lower() in ("x86_64", "amd64") else "arm"]
    return {
        "release": ctypes.cast(LIBC.free, ctypes.c_void_p).value,
        "piece": PIECE,
        "types": ", ".join(field.rpartition(" ")[0] for field in FIELDS),
        "max_threads": MAX_THREADS,
        "helpers": MAX_THREADS - 1,
        "places": PLACES,
        "pauses": PAUSES,
        "declared_pause": declared,
        "pause": called,
    }
