// The row kernel of the distillation loss on CPUs. What it computes is said by `eager_rows` in distillation.py; one read
// of both rows of logits from memory, fp32 inside, the gradient written over the student's logits.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

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

float read(const float* p) { return *p; }
float read(const uint16_t* p) { return std::bit_cast<float>(static_cast<uint32_t>(*p) << 16); }
void write(float* p, float x) { *p = x; }
void write(uint16_t* p, float x) {  // to the nearest, ties to even
  uint32_t bits = std::bit_cast<uint32_t>(x);
  *p = static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// e^x for x <= 0, to 2 units in the last place, in steps that compilers vectorise; 0 below -87.
float exponential(float x) {
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
    values[3] = own == most_s;
    if (r.teacher) values[4] = s[std::max_element(t, t + n) - t] == most_s;
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
