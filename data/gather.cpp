// Reading many sequences at once out of memory-mapped shards. What each operation computes is said by the numpy form
// beside its call, in data/gather.py and token_counts.py.
#include <algorithm>
#include <atomic>
#include <bit>
#include <csetjmp>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <vector>

// A row of data/gather.py's table of shards; bytes: of an id.
struct Shard {
  const char *lengths, *pointers, *ids;
  int64_t size;
  uint32_t bytes, is_signed;
};

namespace {

// Where a mapped file was cut short, or its disk fails, a read raises SIGBUS; it makes `guard` false.
thread_local sigjmp_buf* volatile guarded = nullptr;
struct sigaction before;
void on_bus_error(int, siginfo_t*, void*) {
  if (guarded) siglongjmp(*guarded, 1);
  sigaction(SIGBUS, &before, nullptr);  // none of ours: it comes again, to whom it is for
}
[[maybe_unused]] const int installed = [] {
  struct sigaction action {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  return sigaction(SIGBUS, &action, &before);
}();
template <typename Read>
bool guard(Read read) {
  sigjmp_buf here;
  if (sigsetjmp(here, 0)) return guarded = nullptr, false;
  guarded = &here;
  std::atomic_signal_fence(std::memory_order_seq_cst);  // no read moves out of the guarded stretch
  read();
  std::atomic_signal_fence(std::memory_order_seq_cst);
  guarded = nullptr;
  return true;
}

template <typename T>
T at(const char* base, int64_t i) {  // an index's arrays are not aligned
  T value;
  std::memcpy(&value, base + i * sizeof(T), sizeof(T));
  return value;
}
template <typename T>
void widen(const char* ids, int64_t first, int64_t count, int64_t* into) {
  for (int64_t i = 0; i < count; ++i) into[i] = at<T>(ids, first + i);
}

}  // namespace

extern "C" {

// Returns how many sequences stand before the first one that is damaged or not there; -1: the index can't be read.
int64_t gather_extents(const Shard* shards, const int64_t* starts, int64_t shard_count, const int64_t* sequences,
                       int64_t count, int64_t* shard_of, int64_t* first, int64_t* lengths) {
  int64_t sound = count;
  bool read = guard([&] {
    for (int64_t i = 0; i < sound; ++i) {
      int64_t k = shard_of[i] = std::upper_bound(starts, starts + shard_count, sequences[i]) - starts - 1;
      if (k < 0 || sequences[i] >= starts[shard_count]) return void(sound = i);
      lengths[i] = at<int32_t>(shards[k].lengths, sequences[i] - starts[k]);
      first[i] = at<int64_t>(shards[k].pointers, sequences[i] - starts[k]) >> std::countr_zero(shards[k].bytes);
      if (first[i] < 0 || lengths[i] <= 0 || first[i] > shards[k].size - lengths[i]) return void(sound = i);
      const char* begin = shards[k].ids + first[i] * shards[k].bytes;
      for (int64_t line = 0; line < 6; ++line) __builtin_prefetch(begin + 64 * line);  // they are read next
    }
  });
  return read ? sound : -1;
}

// Returns 0; -1 where the ids can't be read.
int64_t gather_ids(const Shard* shards, const int64_t* shard_of, const int64_t* first, const int64_t* ends,
                      int64_t count, int64_t* ids) {
  bool read = guard([&] {
    for (int64_t i = 0; i < count; ++i) {
      const Shard& shard = shards[shard_of[i]];
      int64_t n = ends[i + 1] - ends[i], *into = ids + ends[i];
      switch (shard.bytes << 1 | shard.is_signed) {
        case 2: widen<uint8_t>(shard.ids, first[i], n, into); break;
        case 3: widen<int8_t>(shard.ids, first[i], n, into); break;
        case 4: widen<uint16_t>(shard.ids, first[i], n, into); break;
        case 5: widen<int16_t>(shard.ids, first[i], n, into); break;
        case 8: widen<uint32_t>(shard.ids, first[i], n, into); break;
        case 9: widen<int32_t>(shard.ids, first[i], n, into); break;
        default: widen<int64_t>(shard.ids, first[i], n, into);
      }
    }
  });
  return read ? 0 : -1;
}

// Adds to counts [65536].
int64_t gather_count(const uint16_t* ids, int64_t count, int64_t* counts) {
  std::vector<uint32_t> seen(4 << 16);  // four tables: the same id twice in a row would wait for its own store
  bool read = guard([&] {
    int64_t i = 0;
    for (; i + 4 <= count; i += 4)
      for (int64_t lane = 0; lane < 4; ++lane) ++seen[lane << 16 | ids[i + lane]];
    for (; i < count; ++i) ++seen[ids[i]];
  });
  for (int64_t id = 0; id < 4 << 16; ++id) counts[id & 0xFFFF] += seen[id];
  return read ? 0 : -1;
}

}  // extern "C"
