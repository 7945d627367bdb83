// The end of a block on CPUs: dropout, residual sum and layer norm in one pass, forward and backward. fp32 inside.
#include <algorithm>
#include <vector>

#include "rows.h"

// Mirrors residual.py's ctypes structure. All of [rows, columns] unless said otherwise.
struct Block {
  const void *x, *residual;  // forward: what dropout is applied to, and what is added
  void *sum, *y;             // forward: the sum (null where no gradient will be needed) and its norm
  const void *gradient;      // backward: of y
  void *of_x, *of_residual;  // backward: gradients; of_x is null where it equals of_residual
  const void *weight, *bias; // [columns]
  float *mean, *rstd;        // [rows]
  float *of_weight, *of_bias;// [columns], zeroed
  int64_t rows, columns;
  uint64_t seed;
  float dropout, epsilon;
  int32_t bf16, threads;
};

namespace {

template <typename T>
const T* row(const void* base, const Block& b, int64_t k) { return static_cast<const T*>(base) + k * b.columns; }
template <typename T>
T* row(void* base, const Block& b, int64_t k) { return static_cast<T*>(base) + k * b.columns; }

template <typename T>
void forward(const Block& b, int64_t k, float* z) {
  const T *x = row<T>(b.x, b, k), *residual = row<T>(b.residual, b, k);
  const T *weight = static_cast<const T*>(b.weight), *bias = static_cast<const T*>(b.bias);
  const int64_t n = b.columns;
  if (b.dropout > 0) {
    const Dropout keep(b.dropout, b.seed, k);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) z[i] = read(residual + i) + read(x + i) * keep(i);
  } else {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) z[i] = read(residual + i) + read(x + i);
  }
  float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += z[i];
  const float mean = sum / n;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < n; ++i) squares += (z[i] - mean) * (z[i] - mean);
  const float rstd = 1 / std::sqrt(squares / n + b.epsilon);
  T* y = row<T>(b.y, b, k);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) write(y + i, (z[i] - mean) * rstd * read(weight + i) + read(bias + i));
  if (!b.sum) return;
  T* kept = row<T>(b.sum, b, k);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) write(kept + i, z[i]);
  b.mean[k] = mean;
  b.rstd[k] = rstd;
}

template <typename T>
void backward(const Block& b, int64_t k, float* scratch, float* of_weight, float* of_bias) {
  const T *gradient = row<T>(b.gradient, b, k), *z = row<T>(static_cast<const void*>(b.sum), b, k);
  const T* weight = static_cast<const T*>(b.weight);
  const int64_t n = b.columns;
  const float mean = b.mean[k], rstd = b.rstd[k];
  float *normed = scratch, *weighted = scratch + n, along = 0, sum = 0;
#pragma omp simd reduction(+ : along, sum)
  for (int64_t i = 0; i < n; ++i) {
    const float g = read(gradient + i);
    normed[i] = (read(z + i) - mean) * rstd;
    weighted[i] = g * read(weight + i);
    of_weight[i] += g * normed[i];
    of_bias[i] += g;
    sum += weighted[i];
    along += weighted[i] * normed[i];
  }
  sum /= n;
  along /= n;
  T* of_residual = row<T>(b.of_residual, b, k);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    weighted[i] = (weighted[i] - sum - normed[i] * along) * rstd;
    write(of_residual + i, weighted[i]);
  }
  if (!b.of_x) return;
  T* of_x = row<T>(b.of_x, b, k);
  const Dropout keep(b.dropout, b.seed, k);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) write(of_x + i, weighted[i] * keep(i));
}

template <typename T>
void forward_all(const Block& b) {
#pragma omp parallel num_threads(b.threads)
  {
    std::vector<float> scratch(b.columns);
#pragma omp for schedule(static)
    for (int64_t k = 0; k < b.rows; ++k) forward<T>(b, k, scratch.data());
  }
}

// Sums over rows are taken by blocks of them, and those added in order: the same bits on any number of threads.
template <typename T>
void backward_all(const Block& b) {
  const int64_t size = 512, blocks = (b.rows + size - 1) / size, n = b.columns;
  std::vector<float> sums(2 * n * blocks);
#pragma omp parallel num_threads(b.threads)
  {
    std::vector<float> scratch(2 * n);
#pragma omp for schedule(static)
    for (int64_t block = 0; block < blocks; ++block) {
      float *of_weight = sums.data() + 2 * n * block, *of_bias = of_weight + n;
      for (int64_t k = block * size; k < std::min(b.rows, (block + 1) * size); ++k) {
        backward<T>(b, k, scratch.data(), of_weight, of_bias);
      }
    }
  }
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t i = 0; i < n; ++i) {
      b.of_weight[i] += sums[2 * n * block + i];
      b.of_bias[i] += sums[2 * n * block + n + i];
    }
  }
}

}  // namespace

extern "C" void residual_forward(const Block* b) { b->bf16 ? forward_all<uint16_t>(*b) : forward_all<float>(*b); }
extern "C" void residual_backward(const Block* b) { b->bf16 ? backward_all<uint16_t>(*b) : backward_all<float>(*b); }
