// The row kernel of the distillation loss on CPUs. What it computes is said by `eager_rows` in distillation.py; one read
// of both rows of logits from memory, fp32 inside, the gradient written over the student's logits.
#include <algorithm>
#include <vector>

#include "rows.h"

// Mirrors distillation.py's ctypes structure.
struct Rows {
  void* student;         // logits [rows, stride]; becomes the gradient
  const void* teacher;   // logits [rows, stride]; null: none
  const int64_t* labels; // [rows], -1 where no word is to be predicted
  float* values;         // [rows, 5]: soft targets, masked words, squared differences, right, agreeing
  int64_t rows, stride, vocabulary;
  float temperature, ce, mlm, mse;  // weights of the gradient
  int32_t gradient, bf16, threads;
};

namespace {

struct Scratch {
  std::vector<float> s, t, e;
  explicit Scratch(int64_t size) : s(size), t(size), e(size) {}
};

template <typename T>
float load(const T* row, float* into, int64_t n) {
  float largest = -INFINITY;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < n; ++i) {
    into[i] = read(row + i);
    largest = std::max(largest, into[i]);
  }
  return largest;
}

// Masked words: e becomes exp(s - largest); its sum.
float softmax_sum(const float* s, float largest, float* e, int64_t n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) {
    e[i] = exponential(s[i] - largest);
    sum += e[i];
  }
  return sum;
}

template <typename T>
void row(const Rows& r, int64_t k, Scratch& scratch) {
  const int64_t n = r.vocabulary, label = r.labels[k];
  const bool soft = r.teacher && (r.ce > 0 || !r.gradient), labelled = label >= 0;
  T* student = static_cast<T*>(r.student) + k * r.stride;
  float *s = scratch.s.data(), *t = scratch.t.data(), *e = scratch.e.data(), *values = r.values + 5 * k;
  std::fill(values, values + 5, 0.0f);
  const float most_s = load(student, s, n);
  const float most_t = r.teacher ? load(static_cast<const T*>(r.teacher) + k * r.stride, t, n) : 0;

  float by_words = 0;
  if (labelled) {
    const float sum = softmax_sum(s, most_s, e, n), own = s[label];
    values[1] = std::log(sum) + most_s - own;
    if (!r.gradient) {
      const int64_t first = std::find(s, s + n, most_s) - s;
      values[3] = first == label;
      values[4] = r.teacher && std::find(t, t + n, most_t) - t == first;
    }
    by_words = r.mlm / sum;
  }
  float squares = 0;
  if (r.teacher && (r.mse > 0 || !r.gradient)) {
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < n; ++i) squares += (s[i] - t[i]) * (s[i] - t[i]);
    values[2] = squares;
  }
  if (r.mse > 0 && r.gradient) {  // e holds what is not of the soft targets
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) e[i] = (labelled ? e[i] * by_words : 0) + 2 * r.mse * (s[i] - t[i]);
    by_words = 1;
  }
  const bool other = labelled || (r.mse > 0 && r.gradient);
  float of_student = 0, of_teacher = 0;
  if (soft) {
    const float cold = 1 / r.temperature;
    float sum_s = 0, sum_t = 0, cross = 0;
#pragma omp simd reduction(+ : sum_s, sum_t, cross)
    for (int64_t i = 0; i < n; ++i) {
      const float a = s[i] - most_s, b = t[i] - most_t;
      s[i] = exponential(a * cold);
      t[i] = exponential(b * cold);
      sum_s += s[i];
      sum_t += t[i];
      cross += t[i] * (b - a);
    }
    values[0] = (cross * cold / sum_t + std::log(sum_s / sum_t)) * r.temperature * r.temperature;
    of_student = r.ce * r.temperature / sum_s;
    of_teacher = r.ce * r.temperature / sum_t;
  }
  if (!r.gradient) return;
  if (soft && other) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) write(student + i, s[i] * of_student - t[i] * of_teacher + e[i] * by_words);
  } else if (soft) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) write(student + i, s[i] * of_student - t[i] * of_teacher);
  } else if (other) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) write(student + i, e[i] * by_words);
  } else {
    for (int64_t i = 0; i < n; ++i) write(student + i, 0.0f);
  }
  if (labelled && r.mlm > 0) {  // in fp32: the gradient there may be a small difference
    const float softly = soft ? s[label] * of_student - t[label] * of_teacher : 0;
    write(student + label, softly + e[label] * by_words - r.mlm);
  }
  for (int64_t i = n; i < r.stride; ++i) write(student + i, 0.0f);  // filler of the vocabulary
}

template <typename T>
void all(const Rows& r) {
#pragma omp parallel num_threads(r.threads)
  {
    Scratch scratch(r.vocabulary);
#pragma omp for schedule(static)
    for (int64_t k = 0; k < r.rows; ++k) row<T>(r, k, scratch);
  }
}

}  // namespace

extern "C" void distillation_rows(const Rows* rows) { rows->bf16 ? all<uint16_t>(*rows) : all<float>(*rows); }

// into += what, bf16 to fp32
extern "C" void accumulate(float* into, const uint16_t* what, int64_t n, int32_t threads) {
#pragma omp parallel for simd schedule(static) num_threads(threads)
  for (int64_t i = 0; i < n; ++i) into[i] += read(what + i);
}
