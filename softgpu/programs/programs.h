// Device programs that run both here and on a real GPU: ordinary PTX for any driver to compile,
// with comment lines that tell the software GPU what each kernel costs and does
// (softgpu/client/program.h has the grammar). What a line says and what the PTX does must be the
// same, bit for bit; softgpu/README.md lists the kernels.
//
// Kernels take their duration in nanoseconds of device time; on a real GPU they spin on the global
// timer. Each block of a kernel lasts that long.
#ifndef SOFTGPU_PROGRAMS_PROGRAMS_H_
#define SOFTGPU_PROGRAMS_PROGRAMS_H_

namespace rubato::softgpu {

// rb_spin(ns): every block takes `ns`.
// rb_hash(out, in, count, key, ns): out[i] = mix(in[i], key) + i for i < count, 32-bit words; each
// block takes `ns`.
//   Chained in place, the values prove which launches ran and in which order.
// rb_axpy(y, x, count, a, ns): y[i] = a * x[i] + y[i] in fp32, multiply and add rounded separately.
// rb_store(word, value, ns), rb_add(word, value, ns): one 32-bit word; meant for one block.
// rb_wait(word, value): spins until the word, as a signed difference, has reached `value`.
inline constexpr char kProgram[] = R"ptx(
.version 6.0
.target sm_60
.address_size 64

//softgpu kernel=rb_spin block_ns=p0 regs=16
.visible .entry rb_spin(
    .param .u64 rb_spin_ns
)
{
    .reg .pred %p<2>;
    .reg .b64 %rd<6>;
    ld.param.u64 %rd1, [rb_spin_ns];
    mov.u64 %rd2, %globaltimer;
SPIN_AGAIN:
    mov.u64 %rd3, %globaltimer;
    sub.u64 %rd4, %rd3, %rd2;
    setp.lt.u64 %p1, %rd4, %rd1;
    @%p1 bra SPIN_AGAIN;
    ret;
}

//softgpu kernel=rb_hash op=hash out=p0 in=p1 count=p2 key=p3 block_ns=p4 regs=24
.visible .entry rb_hash(
    .param .u64 rb_hash_out,
    .param .u64 rb_hash_in,
    .param .u32 rb_hash_count,
    .param .u32 rb_hash_key,
    .param .u64 rb_hash_ns
)
{
    .reg .pred %p<3>;
    .reg .b32 %r<20>;
    .reg .b64 %rd<14>;
    mov.u64 %rd1, %globaltimer;
    ld.param.u64 %rd2, [rb_hash_out];
    ld.param.u64 %rd3, [rb_hash_in];
    ld.param.u32 %r1, [rb_hash_count];
    ld.param.u32 %r2, [rb_hash_key];
    ld.param.u64 %rd4, [rb_hash_ns];
    cvta.to.global.u64 %rd2, %rd2;
    cvta.to.global.u64 %rd3, %rd3;
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r4, %ntid.x;
    mov.u32 %r5, %tid.x;
    mad.lo.u32 %r6, %r3, %r4, %r5;
    mov.u32 %r7, %nctaid.x;
    mul.lo.u32 %r8, %r7, %r4;
HASH_NEXT:
    setp.ge.u32 %p1, %r6, %r1;
    @%p1 bra HASH_SPIN;
    mul.wide.u32 %rd5, %r6, 4;
    add.u64 %rd6, %rd3, %rd5;
    ld.global.u32 %r9, [%rd6];
    xor.b32 %r9, %r9, %r2;
    mul.lo.u32 %r9, %r9, 0x9E3779B1;
    shr.u32 %r10, %r9, 15;
    xor.b32 %r9, %r9, %r10;
    mul.lo.u32 %r9, %r9, 0x85EBCA77;
    shr.u32 %r10, %r9, 13;
    xor.b32 %r9, %r9, %r10;
    add.u32 %r9, %r9, %r6;
    add.u64 %rd7, %rd2, %rd5;
    st.global.u32 [%rd7], %r9;
    add.u32 %r6, %r6, %r8;
    bra HASH_NEXT;
HASH_SPIN:
    mov.u64 %rd8, %globaltimer;
    sub.u64 %rd9, %rd8, %rd1;
    setp.lt.u64 %p2, %rd9, %rd4;
    @%p2 bra HASH_SPIN;
    ret;
}

//softgpu kernel=rb_axpy op=axpy out=p0 in=p1 count=p2 key=p3 block_ns=p4 regs=24
.visible .entry rb_axpy(
    .param .u64 rb_axpy_y,
    .param .u64 rb_axpy_x,
    .param .u32 rb_axpy_count,
    .param .f32 rb_axpy_a,
    .param .u64 rb_axpy_ns
)
{
    .reg .pred %p<3>;
    .reg .b32 %r<20>;
    .reg .f32 %f<6>;
    .reg .b64 %rd<14>;
    mov.u64 %rd1, %globaltimer;
    ld.param.u64 %rd2, [rb_axpy_y];
    ld.param.u64 %rd3, [rb_axpy_x];
    ld.param.u32 %r1, [rb_axpy_count];
    ld.param.f32 %f1, [rb_axpy_a];
    ld.param.u64 %rd4, [rb_axpy_ns];
    cvta.to.global.u64 %rd2, %rd2;
    cvta.to.global.u64 %rd3, %rd3;
    mov.u32 %r3, %ctaid.x;
    mov.u32 %r4, %ntid.x;
    mov.u32 %r5, %tid.x;
    mad.lo.u32 %r6, %r3, %r4, %r5;
    mov.u32 %r7, %nctaid.x;
    mul.lo.u32 %r8, %r7, %r4;
AXPY_NEXT:
    setp.ge.u32 %p1, %r6, %r1;
    @%p1 bra AXPY_SPIN;
    mul.wide.u32 %rd5, %r6, 4;
    add.u64 %rd6, %rd3, %rd5;
    add.u64 %rd7, %rd2, %rd5;
    ld.global.f32 %f2, [%rd6];
    ld.global.f32 %f3, [%rd7];
    mul.rn.f32 %f4, %f1, %f2;
    add.rn.f32 %f5, %f4, %f3;
    st.global.f32 [%rd7], %f5;
    add.u32 %r6, %r6, %r8;
    bra AXPY_NEXT;
AXPY_SPIN:
    mov.u64 %rd8, %globaltimer;
    sub.u64 %rd9, %rd8, %rd1;
    setp.lt.u64 %p2, %rd9, %rd4;
    @%p2 bra AXPY_SPIN;
    ret;
}

//softgpu kernel=rb_store op=store out=p0 key=p1 block_ns=p2 regs=16
.visible .entry rb_store(
    .param .u64 rb_store_word,
    .param .u32 rb_store_value,
    .param .u64 rb_store_ns
)
{
    .reg .pred %p<3>;
    .reg .b32 %r<4>;
    .reg .b64 %rd<8>;
    mov.u64 %rd1, %globaltimer;
    ld.param.u64 %rd2, [rb_store_word];
    ld.param.u32 %r1, [rb_store_value];
    ld.param.u64 %rd3, [rb_store_ns];
    cvta.to.global.u64 %rd2, %rd2;
STORE_SPIN:
    mov.u64 %rd4, %globaltimer;
    sub.u64 %rd5, %rd4, %rd1;
    setp.lt.u64 %p1, %rd5, %rd3;
    @%p1 bra STORE_SPIN;
    mov.u32 %r2, %tid.x;
    setp.ne.u32 %p2, %r2, 0;
    @%p2 bra STORE_DONE;
    st.global.u32 [%rd2], %r1;
STORE_DONE:
    ret;
}

//softgpu kernel=rb_add op=add out=p0 key=p1 block_ns=p2 regs=16
.visible .entry rb_add(
    .param .u64 rb_add_word,
    .param .u32 rb_add_value,
    .param .u64 rb_add_ns
)
{
    .reg .pred %p<4>;
    .reg .b32 %r<6>;
    .reg .b64 %rd<8>;
    mov.u64 %rd1, %globaltimer;
    ld.param.u64 %rd2, [rb_add_word];
    ld.param.u32 %r1, [rb_add_value];
    ld.param.u64 %rd3, [rb_add_ns];
    cvta.to.global.u64 %rd2, %rd2;
ADD_SPIN:
    mov.u64 %rd4, %globaltimer;
    sub.u64 %rd5, %rd4, %rd1;
    setp.lt.u64 %p1, %rd5, %rd3;
    @%p1 bra ADD_SPIN;
    mov.u32 %r2, %tid.x;
    mov.u32 %r3, %ctaid.x;
    or.b32 %r2, %r2, %r3;
    setp.ne.u32 %p2, %r2, 0;
    @%p2 bra ADD_DONE;
    atom.global.add.u32 %r4, [%rd2], %r1;
ADD_DONE:
    ret;
}

//softgpu kernel=rb_wait op=wait out=p0 key=p1 regs=16
.visible .entry rb_wait(
    .param .u64 rb_wait_word,
    .param .u32 rb_wait_value
)
{
    .reg .pred %p<2>;
    .reg .b32 %r<5>;
    .reg .b64 %rd<4>;
    ld.param.u64 %rd1, [rb_wait_word];
    ld.param.u32 %r1, [rb_wait_value];
    cvta.to.global.u64 %rd1, %rd1;
WAIT_AGAIN:
    ld.volatile.global.u32 %r2, [%rd1];
    sub.s32 %r3, %r2, %r1;
    setp.lt.s32 %p1, %r3, 0;
    @%p1 bra WAIT_AGAIN;
    ret;
}
)ptx";

}  // namespace rubato::softgpu

#endif  // SOFTGPU_PROGRAMS_PROGRAMS_H_
