"""The GPU tier's kernels, as CUDA C. Pure: text in, text out; `gpu_device.py` has it compiled.

A bag, or a row that is gathered, belongs to `blockDim.x` threads side by side, a warp or a part of
one, each of which has VECTOR columns, loads them at once, and sums them in registers in the order
of the bag's rows, product and sum rounded apart: to the bit what the memory tier answers. No thread
needs another's: no shared memory, no shuffles. The loads of eight rows are on their way before the
first is added, since what a GPU has to hide is the latency of memory.

Every kernel looks at each row number before it touches the row. Where one is outside [0, count),
`*missed` ends as the smallest place of such a one, and the answer means nothing. `count` is at
least 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Template

from shardserve.shards.storage import SCALE_BYTES, Precision

#: The most bytes that a thread loads at once.
LOAD_BYTES = 16
#: What fills `missed` where no row number was outside: a byte, eight times.
ALL_FOUND_BYTE = 0xFF
ALL_FOUND = 2**64 - 1

_RAW = {1: "unsigned char", 2: "unsigned short", 4: "unsigned int", 8: "uint2", 16: "uint4"}


@dataclass(frozen=True)
class DeviceForm:
    """What an element is kept as: in `bits`, times the row's scale if it `has_scale`.

    `element` is the C type of what lookups answer. Rows are as `encoding.encode` makes them.
    """

    name: str
    bits: int
    element: str
    has_scale: bool

    def vector(self, columns: int) -> int:
        """Columns that one thread has: as many as it can load at once, aligned, and no others.

        A scale puts what follows it off by SCALE_BYTES, which is then the most that is aligned.
        """
        if self.has_scale:
            wide = SCALE_BYTES * 8 // self.bits
            return 1 if columns % wide else wide
        wide = LOAD_BYTES * 8 // self.bits
        while columns % wide:
            wide //= 2
        return wide


FLOAT32 = DeviceForm("float32", 32, "float", has_scale=False)
FLOAT64 = DeviceForm("float64", 64, "double", has_scale=False)

#: The forms of tables that are kept as saved and can be pooled, by dtype.
SAVED_FORMS = {form.name: form for form in (FLOAT32, FLOAT64)}
#: The forms of float32 tables that are kept at another precision.
CODED_FORMS = {
    Precision.FLOAT16: DeviceForm("float16", 16, "float", has_scale=False),
    Precision.BFLOAT16: DeviceForm("bfloat16", 16, "float", has_scale=False),
    Precision.INT8: DeviceForm("int8", 8, "float", has_scale=True),
    Precision.INT4: DeviceForm("int4", 4, "float", has_scale=True),
}


def word_bytes(row_bytes: int) -> int:
    """Bytes that one thread copies at once, in rows of so many: a power of two that divides it."""
    return min(LOAD_BYTES, row_bytes & -row_bytes)


#: What the kernels need of the device and plain C has not.
#: No header: NVRTC finds none where only a driver and CuPy are installed.
DEVICE = r"""
__device__ __forceinline__ float half_bits_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ __forceinline__ float bits_to_float(unsigned int bits) { return __uint_as_float(bits); }

__device__ __forceinline__ float times(float x, float y) { return __fmul_rn(x, y); }
__device__ __forceinline__ double times(double x, double y) { return __dmul_rn(x, y); }
__device__ __forceinline__ float plus(float x, float y) { return __fadd_rn(x, y); }
__device__ __forceinline__ double plus(double x, double y) { return __dadd_rn(x, y); }

__device__ __forceinline__ void lower(unsigned long long* least, unsigned long long value) {
    atomicMin(least, value);
}
"""

_WORDS = r"""
typedef long long i64;
typedef unsigned long long u64;
typedef $raw Word;

/* out[i] = table[rows[i]], rows of `words` words, one thread for each word. */
template <typename Id>
__device__ __forceinline__ void gather(
    const Word* __restrict__ table, i64 count, i64 words, const Id* __restrict__ rows, i64 n,
    Word* __restrict__ out, u64* missed)
{
    const i64 place = (i64)blockIdx.x * blockDim.y + threadIdx.y;
    const i64 word = (i64)blockIdx.y * blockDim.x + threadIdx.x;
    if (place >= n || word >= words) return;
    const i64 row = rows[place];
    if ((u64)row < (u64)count) out[place * words + word] = table[row * words + word];
    else lower(missed, place);
}

extern "C" __global__ void __launch_bounds__($threads) gather_int32(
    const Word* table, i64 count, i64 words, const int* rows, i64 n, Word* out, u64* missed)
{ gather<int>(table, count, words, rows, n, out, missed); }

extern "C" __global__ void __launch_bounds__($threads) gather_int64(
    const Word* table, i64 count, i64 words, const i64* rows, i64 n, Word* out, u64* missed)
{ gather<i64>(table, count, words, rows, n, out, missed); }

/* table[places[i]] = rows[i]: the other way, while a table is loaded. */
extern "C" __global__ void __launch_bounds__($threads) scatter(
    Word* __restrict__ table, i64 count, i64 words, const i64* __restrict__ places, i64 n,
    const Word* __restrict__ rows, u64* missed)
{
    const i64 place = (i64)blockIdx.x * blockDim.y + threadIdx.y;
    const i64 word = (i64)blockIdx.y * blockDim.x + threadIdx.x;
    if (place >= n || word >= words) return;
    const i64 row = places[place];
    if ((u64)row < (u64)count) table[row * words + word] = rows[place * words + word];
    else lower(missed, place);
}
"""

_FORM = r"""
typedef long long i64;
typedef unsigned long long u64;
typedef unsigned char u8;
typedef $element Element;
enum { VECTOR = $vector };

$kept

__device__ __forceinline__ void put(Element* out, const Element* values) {
    union Pack { Element values[VECTOR]; $out_raw raw[$out_count]; } pack;
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) pack.values[i] = values[i];
#pragma unroll
    for (int i = 0; i < $out_count; ++i) (($out_raw*)out)[i] = pack.raw[i];
}

/* total += the sum of table[rows[i]], i from `first` on, N of them. */
template <int N, typename Id>
__device__ __forceinline__ void add(
    const u8* __restrict__ table, i64 count, i64 row_bytes, i64 column,
    const Id* __restrict__ rows, const Element* __restrict__ weights, i64 first, Element* total,
    u64* missed)
{
    i64 row[N];
    Kept kept[N];
    Element weight[N];
    /* One loop for each kind of load, none of them in a branch: those of a kind do not wait for
       each other. */
#pragma unroll
    for (int j = 0; j < N; ++j) row[j] = rows[first + j];
    bool found = true;
#pragma unroll
    for (int j = 0; j < N; ++j) found = found && (u64)row[j] < (u64)count;
    if (!found) {
#pragma unroll
        for (int j = 0; j < N; ++j) {
            if ((u64)row[j] < (u64)count) continue;
            lower(missed, first + j);
            row[j] = 0;
        }
    }
#pragma unroll
    for (int j = 0; j < N; ++j) kept[j] = load(table + row[j] * row_bytes, column);
    if (weights) {
#pragma unroll
        for (int j = 0; j < N; ++j) weight[j] = weights[first + j];
    }
#pragma unroll
    for (int j = 0; j < N; ++j) {
        Element x[VECTOR];
        widen(kept[j], column, x);
#pragma unroll
        for (int i = 0; i < VECTOR; ++i)
            total[i] = plus(total[i], weights ? times(x[i], weight[j]) : x[i]);
    }
}

/* out[bag] = the sum of table[rows[i]], i from offsets[bag] up to offsets[bag + 1]. */
template <typename Id>
__device__ __forceinline__ void pool(
    const u8* __restrict__ table, i64 count, i64 row_bytes, i64 columns,
    const Id* __restrict__ rows, const i64* __restrict__ offsets, i64 bags,
    const Element* __restrict__ weights, Element* __restrict__ out, u64* missed)
{
    const i64 bag = (i64)blockIdx.x * blockDim.y + threadIdx.y;
    const i64 column = ((i64)blockIdx.y * blockDim.x + threadIdx.x) * VECTOR;
    if (bag >= bags || column >= columns) return;
    i64 at = offsets[bag];
    const i64 stop = offsets[bag + 1];
    Element total[VECTOR];
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) total[i] = 0;
    for (; at + 8 <= stop; at += 8)
        add<8>(table, count, row_bytes, column, rows, weights, at, total, missed);
    if (at + 4 <= stop) {
        add<4>(table, count, row_bytes, column, rows, weights, at, total, missed);
        at += 4;
    }
    if (at + 2 <= stop) {
        add<2>(table, count, row_bytes, column, rows, weights, at, total, missed);
        at += 2;
    }
    if (at < stop) add<1>(table, count, row_bytes, column, rows, weights, at, total, missed);
    put(out + bag * columns + column, total);
}

extern "C" __global__ void __launch_bounds__($threads) pool_int32(
    const u8* table, i64 count, i64 row_bytes, i64 columns, const int* rows, const i64* offsets,
    i64 bags, const Element* weights, Element* out, u64* missed)
{ pool<int>(table, count, row_bytes, columns, rows, offsets, bags, weights, out, missed); }

extern "C" __global__ void __launch_bounds__($threads) pool_int64(
    const u8* table, i64 count, i64 row_bytes, i64 columns, const i64* rows, const i64* offsets,
    i64 bags, const Element* weights, Element* out, u64* missed)
{ pool<i64>(table, count, row_bytes, columns, rows, offsets, bags, weights, out, missed); }

/* out[i] = table[rows[i]], widened. */
template <typename Id>
__device__ __forceinline__ void gather(
    const u8* __restrict__ table, i64 count, i64 row_bytes, i64 columns,
    const Id* __restrict__ rows, i64 n, Element* __restrict__ out, u64* missed)
{
    const i64 place = (i64)blockIdx.x * blockDim.y + threadIdx.y;
    const i64 column = ((i64)blockIdx.y * blockDim.x + threadIdx.x) * VECTOR;
    if (place >= n || column >= columns) return;
    const i64 row = rows[place];
    if ((u64)row < (u64)count) {
        Element x[VECTOR];
        widen(load(table + row * row_bytes, column), column, x);
        put(out + place * columns + column, x);
    } else {
        lower(missed, place);
    }
}

extern "C" __global__ void __launch_bounds__($threads) gather_int32(
    const u8* table, i64 count, i64 row_bytes, i64 columns, const int* rows, i64 n, Element* out,
    u64* missed)
{ gather<int>(table, count, row_bytes, columns, rows, n, out, missed); }

extern "C" __global__ void __launch_bounds__($threads) gather_int64(
    const u8* table, i64 count, i64 row_bytes, i64 columns, const i64* rows, i64 n, Element* out,
    u64* missed)
{ gather<i64>(table, count, row_bytes, columns, rows, n, out, missed); }
"""

_KEPT = r"""
typedef $raw Raw;
struct Kept { Raw raw; };

__device__ __forceinline__ Kept load(const u8* row, i64 column) {
    Kept kept;
    kept.raw = *(const Raw*)(row + column * $bits / 8);
    return kept;
}

__device__ __forceinline__ void widen(const Kept& kept, i64 column, Element* x) {
    union Pack { Raw raw; $code codes[VECTOR]; } pack;
    pack.raw = kept.raw;
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) x[i] = $widened;
}
"""

_KEPT_SCALED = r"""
typedef $raw Raw;
struct Kept { Raw raw; float scale; };

/* A row whose codes are not loaded $scale_bytes bytes at a time may lie anywhere. */
__device__ __forceinline__ float scale_of(const u8* row) {
    if (sizeof(Raw) == $scale_bytes) return *(const float*)row;
    return bits_to_float(
        row[0] | (unsigned)row[1] << 8 | (unsigned)row[2] << 16 | (unsigned)row[3] << 24);
}

__device__ __forceinline__ Kept load(const u8* row, i64 column) {
    Kept kept;
    kept.raw = *(const Raw*)(row + $scale_bytes + column * $bits / 8);
    kept.scale = scale_of(row);
    return kept;
}

__device__ __forceinline__ void widen(const Kept& kept, i64 column, Element* x) {
#pragma unroll
    for (int i = 0; i < VECTOR; ++i) {
        const int code = $code_of;
        x[i] = times((float)code, kept.scale);
    }
}
"""

_CODES = {
    "float32": ("float", "pack.codes[i]"),
    "float64": ("double", "pack.codes[i]"),
    "float16": ("unsigned short", "half_bits_to_float(pack.codes[i])"),
    "bfloat16": ("unsigned short", "bits_to_float((unsigned int)pack.codes[i] << 16)"),
}
#: The i-th code: as many as there are lie in `raw`, the first lowest; one int4 alone in half of it.
_SCALED_CODES = {
    "int8": "(int)(signed char)(kept.raw >> 8 * i & 255)",
    "int4": "(int)((kept.raw >> 4 * (VECTOR == 1 ? (int)(column & 1) : i) & 15) ^ 8) - 8",
}


def words_code(width: int, threads: int) -> str:
    """Kernels that copy rows of words of `width` bytes: `gather_int32`, `_int64`, `scatter`.

    `threads` is the most that a block has.
    """
    return Template(_WORDS).substitute(raw=_RAW[width], threads=threads)


def form_code(form: DeviceForm, vector: int, threads: int) -> str:
    """Kernels over rows in a form, `vector` columns a thread: `pool_*`, and `gather_*`, widened."""
    raw = _RAW[max(1, vector * form.bits // 8)]
    if form.has_scale:
        kept = Template(_KEPT_SCALED).substitute(
            raw=raw, scale_bytes=SCALE_BYTES, bits=form.bits, code_of=_SCALED_CODES[form.name]
        )
    else:
        code, widened = _CODES[form.name]
        kept = Template(_KEPT).substitute(raw=raw, bits=form.bits, code=code, widened=widened)
    out_bytes = vector * (8 if form.element == "double" else 4)
    step = min(LOAD_BYTES, out_bytes)
    return Template(_FORM).substitute(
        element=form.element,
        vector=vector,
        threads=threads,
        kept=kept,
        out_raw=_RAW[step],
        out_count=out_bytes // step,
    )
