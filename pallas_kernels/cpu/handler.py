"""The function that XLA calls, as LLVM IR: it shares the outputs of a product out among XLA's own threads.

XLA's interface is `xla/ffi/api/c_api.h`, which jaxlib holds in `jax.ffi.include_dir()`. The numbers below are offsets
in bytes of its structures on 64-bit machines; the interface keeps the fields that exist.

Each thread reads a range of the weight of its own, piece by piece, since memory is read fastest in order; then it takes
pieces of the ranges of others that are left. The caller waits for those pieces alone that another thread has begun, so
that no thread waits for one that is waiting itself. The thread that is the last to leave frees the job.

A decoding step is a chain of short products, and to wake a thread takes as long as one of them. A helper therefore
stays awake for a while after a job, at one of the `PLACES`, where the next product finds it, of whatever kind.
"""

import ctypes
import platform
import string
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
FFI_VERSION = (0, 1)
"""The oldest version of the interface that has what is used here."""

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

IR = string.Template("""
%job = type { ptr, ptr, ptr, ptr, i64, i64, i64, i64, i64, i64, i64, i64, i64, [$max_threads x i64], ptr }

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

define private ptr @field(ptr %structure, i64 %offset) alwaysinline {
  %at = getelementptr i8, ptr %structure, i64 %offset
  %value = load ptr, ptr %at
  ret ptr %value
}

define private i64 @threads(ptr %api, ptr %context) {
  %arguments = alloca [4 x i64]
  %count = alloca i64
  store i64 1, ptr %count
  store i64 32, ptr %arguments
  %a1 = getelementptr i64, ptr %arguments, i64 1
  %a2 = getelementptr i64, ptr %arguments, i64 2
  %a3 = getelementptr i64, ptr %arguments, i64 3
  store ptr null, ptr %a1
  store ptr %context, ptr %a2
  store ptr %count, ptr %a3
  %ask = call ptr @field(ptr %api, i64 144)
  %error = call ptr %ask(ptr %arguments)
  %failed = icmp ne ptr %error, null
  br i1 %failed, label %alone, label %end
alone:
  call void @drop_error(ptr %api, ptr %error)
  ret i64 1
end:
  %threads = load i64, ptr %count
  ret i64 %threads
}

define private void @drop_error(ptr %api, ptr %error) {
  %arguments = alloca [3 x i64]
  store i64 24, ptr %arguments
  %a1 = getelementptr i64, ptr %arguments, i64 1
  %a2 = getelementptr i64, ptr %arguments, i64 2
  store ptr null, ptr %a1
  store ptr %error, ptr %a2
  %destroy = call ptr @field(ptr %api, i64 64)
  call void %destroy(ptr %arguments)
  ret void
}

define private void @schedule(ptr %api, ptr %context, ptr %job) {
  %arguments = alloca [5 x i64]
  store i64 40, ptr %arguments
  %a1 = getelementptr i64, ptr %arguments, i64 1
  %a2 = getelementptr i64, ptr %arguments, i64 2
  %a3 = getelementptr i64, ptr %arguments, i64 3
  %a4 = getelementptr i64, ptr %arguments, i64 4
  store ptr null, ptr %a1
  store ptr %context, ptr %a2
  store ptr @task, ptr %a3
  store ptr %job, ptr %a4
  %schedule = call ptr @field(ptr %api, i64 136)
  %error = call ptr %schedule(ptr %arguments)
  %failed = icmp ne ptr %error, null
  br i1 %failed, label %refused, label %end
refused:
  call void @drop_error(ptr %api, ptr %error)
  call void @leave(ptr %job)
  br label %end
end:
  ret void
}

define ptr @handler(ptr %frame) {
  %extension = call ptr @field(ptr %frame, i64 8)
  %plain = icmp eq ptr %extension, null
  br i1 %plain, label %stage, label %extended
extended:
  %type.at = getelementptr i8, ptr %extension, i64 8
  %type = load i32, ptr %type.at
  %asked = icmp eq i32 %type, 1
  br i1 %asked, label %metadata, label %stage
metadata:
  %metadata.at = call ptr @field(ptr %extension, i64 24)
  %major = getelementptr i8, ptr %metadata.at, i64 24
  %minor = getelementptr i8, ptr %metadata.at, i64 28
  %traits = getelementptr i8, ptr %metadata.at, i64 32
  store i32 $major, ptr %major
  store i32 $minor, ptr %minor
  store i32 0, ptr %traits
  ret ptr null
stage:
  %stage.at = getelementptr i8, ptr %frame, i64 32
  %stage.is = load i32, ptr %stage.at
  %execute = icmp eq i32 %stage.is, 3
  br i1 %execute, label %run, label %end
run:
  %api = call ptr @field(ptr %frame, i64 16)
  %context = call ptr @field(ptr %frame, i64 24)
  %arguments = call ptr @field(ptr %frame, i64 72)
  %results = call ptr @field(ptr %frame, i64 112)
  %x = call ptr @field(ptr %arguments, i64 0)
  %weight = call ptr @field(ptr %arguments, i64 8)
  %scales = call ptr @field(ptr %arguments, i64 16)
  %y = call ptr @field(ptr %results, i64 0)
  %x.data = call ptr @field(ptr %x, i64 24)
  %weight.data = call ptr @field(ptr %weight, i64 24)
  %scales.data = call ptr @field(ptr %scales, i64 24)
  %y.data = call ptr @field(ptr %y, i64 24)
  %x.dims = call ptr @field(ptr %x, i64 40)
  %y.dims = call ptr @field(ptr %y, i64 40)
  %scales.dims = call ptr @field(ptr %scales, i64 40)
  %inputs.at = getelementptr i64, ptr %x.dims, i64 1
  %outputs.at = getelementptr i64, ptr %y.dims, i64 1
  %groups.at = getelementptr i64, ptr %scales.dims, i64 1
  %rows = load i64, ptr %x.dims
  %inputs = load i64, ptr %inputs.at
  %outputs = load i64, ptr %outputs.at
  %groups = load i64, ptr %groups.at

  %numbers = mul i64 %outputs, %inputs
  %given = call i64 @threads(ptr %api, ptr %context)
  %worth = udiv i64 %numbers, $worth_sharing
  %sharing = call i64 @llvm.umin.i64(i64 %worth, i64 %given)
  %few = call i64 @llvm.umin.i64(i64 %sharing, i64 $max_threads)
  %threads = call i64 @llvm.umax.i64(i64 %few, i64 1)
  %wakes = icmp uge i64 %numbers, $worth_waking
  %each = udiv i64 %numbers, %threads
  %shares = udiv i64 %each, $piece
  %pieces = call i64 @llvm.umax.i64(i64 %shares, i64 1)
  %all = mul i64 %pieces, %threads

  %job.size = getelementptr %job, ptr null, i32 1
  %size = ptrtoint ptr %job.size to i64
  %job = call ptr inttoptr (i64 $take to ptr)(i64 %size)
  $fill
  br label %share
share:
  %helper = phi i64 [ 1, %run ], [ %helper.next, %on ]
  %more = icmp ult i64 %helper, %threads
  br i1 %more, label %hand, label %own
hand:
  %handed = call i1 @hand(ptr %job)
  br i1 %handed, label %on, label %asleep
asleep:
  br i1 %wakes, label %wake, label %alone
wake:
  call void @schedule(ptr %api, ptr %context, ptr %job)
  br label %on
alone:
  call void @leave(ptr %job)
  br label %on
on:
  %helper.next = add i64 %helper, 1
  br label %share
own:
  call void @work(ptr %job, i64 0)
  %done.at = getelementptr %job, ptr %job, i32 0, i32 12
  br label %wait
wait:
  %done = load atomic i64, ptr %done.at acquire, align 8
  %finished = icmp eq i64 %done, %all
  br i1 %finished, label %leave, label %rest
rest:
  call void $pause
  br label %wait
leave:
  call void @leave(ptr %job)
  br label %end
end:
  ret ptr null
}
""")


def handler() -> str:
    """Returns the IR of `@handler`, which has `@outputs(ptr job, i64 begin, i64 end)` called."""
    release, take = (ctypes.cast(function, ctypes.c_void_p).value for function in (LIBC.free, LIBC.malloc))
    major, minor = FFI_VERSION
    declared, called = PAUSE["x86" if platform.machine().lower() in ("x86_64", "amd64") else "arm"]
    lines = []
    for at, value in enumerate(FIELDS):
        lines.append(f"%fill.{at} = getelementptr %job, ptr %job, i32 0, i32 {at}")
        lines.append(f"store {value}, ptr %fill.{at}")
    return IR.substitute(
        release=release,
        take=take,
        major=major,
        minor=minor,
        piece=PIECE,
        worth_sharing=WORTH_SHARING,
        worth_waking=WORTH_WAKING,
        max_threads=MAX_THREADS,
        helpers=MAX_THREADS - 1,
        places=PLACES,
        pauses=PAUSES,
        declared_pause=declared,
        pause=called,
        fill="\n  ".join(lines),
    )
