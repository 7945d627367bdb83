// What row kernels on CPUs share: numbers in fp32 and bf16, the exponential function, keyed random bits.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>

namespace {

inline float read(const float* p) { return *p; }
inline float read(const uint16_t* p) { return std::bit_cast<float>(static_cast<uint32_t>(*p) << 16); }
inline void write(float* p, float x) { *p = x; }
inline void write(uint16_t* p, float x) {  // to the nearest, ties to even
  uint32_t bits = std::bit_cast<uint32_t>(x);
  *p = static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// e^x for x <= 0, to 2 units in the last place, in steps that compilers vectorise; 0 below -87.
inline float exponential(float x) {
  float n = std::floor(x * 1.44269504f + 0.5f);
  n = n < -126.0f ? -126.0f : n;
  float r = x - n * 0.693359375f + n * 2.12194440e-4f;  // ln 2 in two parts (Cody and Waite, 1980)
  float p = 1.9875691500e-4f;  // the polynomial of Cephes's expf
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  float scaled = p * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
  return x < -87.0f ? 0.0f : scaled;
}

// Which entries of a row dropout keeps: a function of seed, row and column, so nothing is stored for the way back.
struct Dropout {
  uint32_t threshold;  // dropped below it, of 2^32
  uint32_t low, high;  // of the row
  float scale;         // of what is kept: 1 / (1 - probability)

  Dropout(float probability, uint64_t seed, int64_t row)
      : threshold(probability < 1 ? static_cast<uint32_t>(probability * 4294967296.0) : 0xFFFFFFFF),
        scale(probability < 1 ? 1 / (1 - probability) : 0) {
    uint64_t x = seed + static_cast<uint64_t>(row) * 0x9E3779B97F4A7C15;  // SplitMix64 (Steele et al., 2014)
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9;
    x = (x ^ x >> 27) * 0x94D049BB133111EB;
    x ^= x >> 31;
    low = static_cast<uint32_t>(x);
    high = static_cast<uint32_t>(x >> 32);
  }

  // Scale where column i is kept, else 0.
  float operator()(int64_t i) const {
    uint32_t x = static_cast<uint32_t>(i) * 0x9E3779B1 + low;
    x = (x ^ x >> 16) * 0x7FEB352D;  // lowbias32 (Wellons, 2018)
    x = (x ^ x >> 15 ^ high) * 0x846CA68B;
    x ^= x >> 16;
    return x < threshold ? 0.0f : scale;
  }
};

}  // namespace
