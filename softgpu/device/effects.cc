#include "softgpu/device/effects.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace rubato::softgpu {

namespace {

constexpr uint64_t kChunk = 64u << 10;

uint32_t Mix(uint32_t x, uint32_t key, uint32_t index) {
  x ^= key;
  x *= 0x9E3779B1u;
  x ^= x >> 15;
  x *= 0x85EBCA77u;
  x ^= x >> 13;
  return x + index;
}

// Calls f(out words, in words, first index, n) for pieces of both arrays and stores what it left in
// `out`.
template <typename F>
bool ForWords(AddressSpace* space, uint64_t out, uint64_t in, uint64_t count, bool read_out, F f) {
  std::vector<uint32_t> a(std::min(count, kChunk)), b(a.size());
  for (uint64_t i = 0; i < count;) {
    const uint64_t n = std::min<uint64_t>(count - i, a.size());
    if (!space->Read(in + i * 4, b.data(), n * 4)) return false;
    if (read_out && !space->Read(out + i * 4, a.data(), n * 4)) return false;
    f(a.data(), b.data(), i, n);
    if (!space->Write(out + i * 4, a.data(), n * 4)) return false;
    i += n;
  }
  return true;
}

}  // namespace

bool Apply(const wire::KernelBody& kernel, AddressSpace* space) {
  const uint64_t out = kernel.args[0], in = kernel.args[1], count = kernel.args[2],
                 key = kernel.args[3];
  switch (kernel.effect) {
    case wire::Effect::kNone:
    case wire::Effect::kWait:
      return true;
    case wire::Effect::kHash:
      return ForWords(space, out, in, count, false,
                      [&](uint32_t* a, const uint32_t* b, uint64_t at, uint64_t n) {
                        for (uint64_t i = 0; i < n; ++i)
                          a[i] =
                              Mix(b[i], static_cast<uint32_t>(key), static_cast<uint32_t>(at + i));
                      });
    case wire::Effect::kCopy:
      return ForWords(
          space, out, in, count, false,
          [&](uint32_t* a, const uint32_t* b, uint64_t, uint64_t n) { std::memcpy(a, b, n * 4); });
    case wire::Effect::kAxpy:
      return ForWords(space, out, in, count, true,
                      [&](uint32_t* a, const uint32_t* b, uint64_t, uint64_t n) {
                        float factor;
                        const uint32_t bits = static_cast<uint32_t>(key);
                        std::memcpy(&factor, &bits, 4);
                        for (uint64_t i = 0; i < n; ++i) {
                          float y, x;
                          std::memcpy(&y, &a[i], 4);
                          std::memcpy(&x, &b[i], 4);
                          y = factor * x + y;
                          std::memcpy(&a[i], &y, 4);
                        }
                      });
    case wire::Effect::kStore:
      return space->StoreWord(out, key, 32);
    case wire::Effect::kAdd: {
      uint64_t word;
      return space->LoadWord(out, 32, &word) && space->StoreWord(out, word + key, 32);
    }
  }
  return true;
}

bool Apply(const wire::CopyBody& copy, const unsigned char* inlined, AddressSpace* space) {
  for (uint64_t z = 0; z < copy.depth; ++z) {
    const uint64_t dst = copy.dst + z * copy.dst_slice;
    const uint64_t src = copy.src + z * copy.src_slice;
    const bool solid = copy.dst_pitch == copy.width && copy.src_pitch == copy.width;
    const uint64_t rows = solid ? 1 : copy.height;
    const uint64_t width = solid ? copy.width * copy.height : copy.width;
    for (uint64_t y = 0; y < rows; ++y) {
      const uint64_t to = dst + y * copy.dst_pitch;
      if (copy.inline_bytes > 0) {
        const uint64_t at = z * copy.src_slice + y * copy.src_pitch;
        if (at + width > copy.inline_bytes) return false;
        if (!space->Write(to, inlined + at, width)) return false;
      } else if (!space->Copy(to, src + y * copy.src_pitch, width)) {
        return false;
      }
    }
  }
  return true;
}

bool Apply(const wire::FillBody& fill, AddressSpace* space) {
  const uint32_t size = fill.element_bytes;
  if (size != 1 && size != 2 && size != 4) return false;
  std::vector<unsigned char> row(std::min<uint64_t>(fill.width * size, 1u << 20));
  for (size_t i = 0; i < row.size(); ++i)
    row[i] = static_cast<unsigned char>(fill.value >> (8 * (i % size)));
  for (uint64_t y = 0; y < fill.height; ++y) {
    const uint64_t to = fill.dst + y * fill.pitch;
    for (uint64_t x = 0; x < fill.width * size;) {
      const uint64_t n = std::min<uint64_t>(fill.width * size - x, row.size());
      if (!space->Write(to + x, row.data(), n)) return false;
      x += n;
    }
  }
  return true;
}

bool Satisfied(const wire::WordBody& word, const AddressSpace& space, bool* fault) {
  uint64_t now = 0;
  if (!space.LoadWord(word.address, word.bits == 64 ? 64 : 32, &now)) {
    *fault = true;
    return true;
  }
  if (word.bits != 64) {
    const uint32_t have = static_cast<uint32_t>(now), want = static_cast<uint32_t>(word.value);
    switch (word.compare & 3) {
      case 0:
        return static_cast<int32_t>(have - want) >= 0;
      case 1:
        return have == want;
      case 2:
        return (have & want) != 0;
      default:
        return ~(have | want) != 0;
    }
  }
  switch (word.compare & 3) {
    case 0:
      return static_cast<int64_t>(now - word.value) >= 0;
    case 1:
      return now == word.value;
    case 2:
      return (now & word.value) != 0;
    default:
      return ~(now | word.value) != 0;
  }
}

}  // namespace rubato::softgpu
