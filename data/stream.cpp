// Order, balance and masks of the training stream. What each operation computes is said by the numpy form beside its
// call, in data/order.py, batching.py and masking.py. Results are the same bit for bit: integers, and IEEE operations
// in the same order (launch/native.py compiles without contracting them).
#include <algorithm>
#include <bit>
#include <cstdint>
#include <functional>
#include <numeric>
#include <queue>
#include <utility>
#include <vector>

// data/masking.py's rule. choice: number of the stream of random numbers that chooses.
struct Rule {
  uint64_t choice, action_key, word_key;
  double mask, keep;
  int64_t mask_id, words;
};

namespace {

constexpr int64_t INFINITE = 0x7FFll << 52;  // an infinite double's bits

// data/keyed.py: SplitMix64's finaliser, and 52 of its bits as a number inside (0, 1).
uint64_t mix(uint64_t x, uint64_t key) {
  x = x * 0x9E3779B97F4A7C15ull + key;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}
double uniform(uint64_t bits) { return std::bit_cast<double>(bits >> 12 | 1023ull << 52) - 1 + 0x1p-53; }

// data/masking.py: -log(uniform(bits)), above 0. In steps that compilers vectorise.
double exponential(uint64_t bits) {
  int64_t u = std::bit_cast<int64_t>(uniform(bits)), fraction = u & ((1ll << 52) - 1);
  int64_t below = fraction < 0x6A09E667F3BCD;  // the fraction of sqrt(1/2)
  double m = std::bit_cast<double>(fraction | (1022 + below) << 52);  // u = m 2^e, m from sqrt(1/2) to sqrt(2)
  double e = static_cast<int32_t>((u >> 52) - 1022 - below);
  double s = (m - 1) / (m + 1), z = s * s;
  double series = (((z * (1.0 / 9) + 1.0 / 7) * z + 1.0 / 5) * z + 1.0 / 3) * z + 1;
  return -(e * 0.6931471805599453 + (s + s) * series);
}

// A number that n of the values do not exceed, found by halving [low, high]. Where several values are the n-th
// smallest, it is that value. (Bits of positive doubles are ordered as the doubles are.)
int64_t nth(const int64_t* values, int64_t size, int64_t n, int64_t low, int64_t high) {
  while (low < high) {
    int64_t middle = low + (high - low) / 2;
    int64_t count = 0;
    for (int64_t i = 0; i < size; ++i) count += values[i] <= middle;
    if (count == n) return middle;
    if (count < n) low = middle + 1;
    else high = middle;
  }
  return low;
}

}  // namespace

extern "C" {

// In place.
void stream_permute(uint64_t* values, const uint64_t* keys, int64_t count, uint64_t n, uint64_t a, uint64_t b,
                    int64_t rounds) {
  for (int64_t i = 0; i < count; ++i) {
    do {
      uint64_t left = values[i] / b, right = values[i] % b;
      for (int64_t round = 0; round < rounds; ++round) {
        if (round % 2 == 0) left = (left + mix(right, mix(round, keys[i])) % a) % a;
        else right = (right + mix(left, mix(round, keys[i])) % b) % b;
      }
      values[i] = left * b + right;
    } while (values[i] >= n);
  }
}

void stream_deal(const int64_t* lengths, const int64_t* order, int64_t count, int64_t parts, int64_t* part_of) {
  using Load = std::pair<int64_t, int64_t>;  // tokens, part
  std::priority_queue<Load, std::vector<Load>, std::greater<>> loads;
  for (int64_t part = 0; part < parts; ++part) loads.push({0, part});
  for (int64_t i = 0; i < count; ++i) {
    auto [tokens, part] = loads.top();
    loads.pop();
    loads.push({tokens + lengths[order[i]], part_of[order[i]] = part});
  }
}

void stream_positions(const int64_t* ends, int64_t count, int64_t* positions) {
  for (int64_t s = 0; s < count; ++s) std::iota(positions + ends[s], positions + ends[s + 1], 0);
}

// Returns the number of tokens chosen. `masked` holds the ids already; `positions` has room for one more.
int64_t stream_mask(const int64_t* ids, const int64_t* ends, int64_t count, const uint64_t* keys, const int64_t* draws,
                    const double* scales, const Rule* rules, int64_t* masked, int64_t* positions, int64_t* labels) {
  const Rule rule = *rules;
  std::vector<int64_t> memory;
  int64_t found = 0;
  for (int64_t s = 0; s < count; ++s) {
    const int64_t *own = ids + ends[s], size = ends[s + 1] - ends[s], from = found;
    memory.resize(std::max<size_t>(memory.size(), size));
    int64_t *arrivals = memory.data(), low = INFINITE, high = 0;
    int64_t words = 0;
    const uint64_t key = mix(rule.choice, keys[s]);
    for (int64_t i = 0; i < size; ++i) {
      arrivals[i] = std::bit_cast<int64_t>(exponential(mix(i, key)) * scales[own[i]]);
    }
    for (int64_t i = 0; i < size; ++i) {
      words += arrivals[i] < INFINITE;
      low = std::min(low, arrivals[i]);
      high = std::max(high, arrivals[i] < INFINITE ? arrivals[i] : 0);
    }
    int64_t n = std::clamp<int64_t>(draws[s], 0, words), surplus = -n;
    int64_t last = n > 0 ? nth(arrivals, size, n, low, high) : 0;
    for (int64_t i = 0; i < size; ++i) surplus += arrivals[i] <= last;
    for (int64_t i = size; surplus > 0;) {  // of equal ones the first is taken
      if (arrivals[--i] == last) arrivals[i] = INFINITE, --surplus;
    }
    for (int64_t i = 0; i < size; ++i) {
      positions[found] = ends[s] + i;
      found += arrivals[i] <= last;
    }
    for (int64_t k = from; k < found; ++k) {
      int64_t label = labels[k] = ids[positions[k]];
      uint64_t bits = mix(positions[k] - ends[s], key);
      int64_t word = static_cast<int64_t>(uniform(mix(bits, rule.word_key)) * static_cast<double>(rule.words));
      double action = uniform(mix(bits, rule.action_key));
      int64_t other = action < rule.keep ? label : word;
      masked[positions[k]] = action < rule.mask ? rule.mask_id : other;
    }
  }
  return found;
}

}  // extern "C"
