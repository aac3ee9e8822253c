"""The function that XLA calls, as LLVM IR: it shares the outputs of a product out among XLA's own threads.

XLA's interface is `xla/ffi/api/c_api.h`, which jaxlib holds in `jax.ffi.include_dir()`. The numbers below are offsets
in bytes of its structures on 64-bit machines; the interface keeps the fields that exist.
"""

import ctypes
import string

from pallas_kernels.cpu import sharing

FFI_VERSION = (0, 1)
"""The oldest version of the interface that has what is used here."""

IR = string.Template(
    sharing.IR
    + """
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

define private void @clear(ptr %y, i64 %from, i64 %to) "no-builtins" {
  br label %check
check:
  %at = phi i64 [ %from, %0 ], [ %next, %store ]
  %more = icmp ult i64 %at, %to
  br i1 %more, label %store, label %end
store:
  %number = getelementptr float, ptr %y, i64 %at
  store float 0.0, ptr %number
  %next = add i64 %at, 1
  br label %check
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
  %wanted = call ptr @field(ptr %arguments, i64 24)
  %y = call ptr @field(ptr %results, i64 0)
  %x.all = call ptr @field(ptr %x, i64 24)
  %weight.data = call ptr @field(ptr %weight, i64 24)
  %scales.data = call ptr @field(ptr %scales, i64 24)
  %y.all = call ptr @field(ptr %y, i64 24)
  %x.dims = call ptr @field(ptr %x, i64 40)
  %y.dims = call ptr @field(ptr %y, i64 40)
  %scales.dims = call ptr @field(ptr %scales, i64 40)
  %inputs.at = getelementptr i64, ptr %x.dims, i64 1
  %outputs.at = getelementptr i64, ptr %y.dims, i64 1
  %groups.at = getelementptr i64, ptr %scales.dims, i64 1
  %rows.all = load i64, ptr %x.dims
  %inputs = load i64, ptr %inputs.at
  %outputs = load i64, ptr %outputs.at
  %groups = load i64, ptr %groups.at

  %first.at = call ptr @field(ptr %wanted, i64 24)
  %end.at = getelementptr i32, ptr %first.at, i64 1
  %first.i32 = load i32, ptr %first.at
  %end.i32 = load i32, ptr %end.at
  %first.given = zext i32 %first.i32 to i64
  %end.given = zext i32 %end.i32 to i64
  %end.row = call i64 @llvm.umin.i64(i64 %end.given, i64 %rows.all)
  %first.row = call i64 @llvm.umin.i64(i64 %first.given, i64 %end.row)
  %rows = sub i64 %end.row, %first.row
  %x.first = mul i64 %first.row, %inputs
  %x.data = getelementptr float, ptr %x.all, i64 %x.first
  %y.first = mul i64 %first.row, %outputs
  %y.data = getelementptr float, ptr %y.all, i64 %y.first
  %y.end = mul i64 %end.row, %outputs
  %y.size = mul i64 %rows.all, %outputs
  call void @clear(ptr %y.all, i64 0, i64 %y.first)
  call void @clear(ptr %y.all, i64 %y.end, i64 %y.size)

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
"""
)


def handler() -> str:
    """Returns the IR of `@handler`, which has `@outputs(ptr job, i64 begin, i64 end)` called."""
    major, minor = FFI_VERSION
    lines = []
    for at, value in enumerate(sharing.FIELDS):
        lines.append(f"%fill.{at} = getelementptr %job, ptr %job, i32 0, i32 {at}")
        lines.append(f"store {value}, ptr %fill.{at}")
    return IR.substitute(
        sharing.values(),
        take=ctypes.cast(sharing.LIBC.malloc, ctypes.c_void_p).value,
        major=major,
        minor=minor,
        worth_sharing=sharing.WORTH_SHARING,
        worth_waking=sharing.WORTH_WAKING,
        fill="\n  ".join(lines),
    )
