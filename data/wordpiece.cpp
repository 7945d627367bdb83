// BERT's WordPiece over raw UTF-8 lines: the ids of the `tokenizers` library, many times faster.
//
// Three facts make it exact:
//  1. The tokenizer never looks across ASCII white space, so the ids of a line are those of its chunks, one after another.
//  2. Within a chunk, normalisation and pre-tokenisation treat each code point by itself. What becomes of it is read out
//     of the reference tokenizer (data/wordpiece.py), not written down here.
//  3. Where that does not hold (marks that Unicode reorders, special tokens inside text, invalid UTF-8), the chunk is left
//     open, and the reference itself answers.
// Chunks of up to 16 bytes are memoised under their full bytes; there is no trust in a hash.
#include <bit>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

static_assert(std::endian::native == std::endian::little, "keys are read as little-endian words");

namespace {

using Id = uint32_t;
using Text = std::string_view;

constexpr int INLINE = 16;                  // bytes of a key that is held in a table's entry
constexpr uint32_t CODE_POINTS = 0x110000;

// What the table of code points says, beside normalised text.
constexpr char ALONE = 1;    // the next character is a word of its own
constexpr char BREAK = 2;    // ends a word
constexpr char OPEN = 3;     // depends on its neighbours: the reference answers

// A text of up to 16 bytes as two words, zero-padded. Reads 16 bytes from p on, whatever the length.
struct Key {
  uint64_t low, high;
  Key(uint64_t low, uint64_t high) : low(low), high(high) {}
  Key(const char* p, int length) {
    std::memcpy(&low, p, 8);
    std::memcpy(&high, p + 8, 8);
    if (length < 8) low &= (1ull << (8 * length)) - 1;
    if (length <= 8) high = 0;
    else if (length < 16) high &= (1ull << (8 * (length - 8))) - 1;
  }
  uint64_t hash(int length) const {
    auto product = static_cast<unsigned __int128>(low ^ 0x9E3779B97F4A7C15ull ^ length) * (high ^ 0xBF58476D1CE4E5B9ull);
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
  }
};

// Texts of up to 16 bytes -> ids, by open addressing with a load of one half at most.
struct Entry {
  uint64_t low = 0, high = 0;
  Id ids[3] = {};      // up to three ids, or where more of them begin in a pool
  uint8_t count = 0;   // of ids
  uint8_t length = 0;  // of the text; 0: the entry is free
};
static_assert(sizeof(Entry) == 32, "two entries a cache line");

struct Table {
  std::vector<Entry> entries{1 << 12};
  uint64_t mask = (1 << 12) - 1, used = 0;

  // The entry of a key, or the free one where it belongs.
  const Entry& at(const Key& key, int length) const {
    uint64_t i = key.hash(length) & mask;
    auto other = [&](const Entry& e) { return e.low != key.low || e.high != key.high || e.length != length; };
    while (entries[i].length && other(entries[i])) i = (i + 1) & mask;
    return entries[i];
  }

  // A key that is not in yet.
  void insert(const Key& key, int length, const Id* ids, int kept, int count) {
    if (++used * 2 > mask) grow();
    Entry entry{key.low, key.high, {}, static_cast<uint8_t>(count), static_cast<uint8_t>(length)};
    std::memcpy(entry.ids, ids, kept * sizeof(Id));
    const_cast<Entry&>(at(key, length)) = entry;
  }

  void grow() {
    std::vector<Entry> old(2 * entries.size());
    old.swap(entries);
    mask = entries.size() - 1;
    for (const Entry& entry : old)
      if (entry.length) const_cast<Entry&>(at(Key(entry.low, entry.high), entry.length)) = entry;
  }
};

struct HashText {
  using is_transparent = void;
  size_t operator()(Text text) const { return std::hash<Text>()(text); }
};

// The vocabulary's words, or its continuations (without their prefix): text -> id.
struct Pieces {
  Table shorter;
  std::unordered_map<std::string, Id, HashText, std::equal_to<>> longer;
  int longest = 0;  // bytes

  void add(Text text, Id id) {
    if (text.empty()) return;
    longest = std::max(longest, static_cast<int>(text.size()));
    if (text.size() > INLINE) {
      longer.emplace(text, id);
    } else {
      char padded[INLINE] = {};
      std::memcpy(padded, text.data(), text.size());
      shorter.insert(Key(padded, text.size()), text.size(), &id, 1, 1);
    }
  }

  // p has 16 readable bytes.
  bool find(const char* p, int length, Id& id) {
    if (length > INLINE) {
      auto found = longer.find(Text(p, length));
      if (found == longer.end()) return false;
      id = found->second;
      return true;
    }
    const Entry& entry = shorter.at(Key(p, length), length);
    id = entry.ids[0];
    return entry.length != 0;
  }
};

struct OpenChunk {
  int64_t begin, length;  // bytes of the block
  int64_t place;          // ids before it, those of open chunks not counted
  int64_t line;
};

bool is_space(unsigned char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

bool is_continuation(char c) { return (c & 0xC0) == 0x80; }

// End of the chunk that begins at i: the next ASCII white space, or n. Reads 8 bytes at a time, up to 7 beyond n.
int64_t chunk_end(const char* text, int64_t i, int64_t n) {
  while (i < n) {
    uint64_t word;
    std::memcpy(&word, text + i, 8);
    // High bit of each byte below 0x21; what borrows make wrong lies behind the first one.
    uint64_t low = (word - 0x2121212121212121ull) & ~word & 0x8080808080808080ull;
    if (!low) {
      i += 8;
      continue;
    }
    i += std::countr_zero(low) / 8;
    if (i >= n || is_space(text[i])) break;
    ++i;
  }
  return std::min(i, n);
}

// Strict decoding of one code point; false where the bytes are not UTF-8.
bool decode(Text text, size_t& i, uint32_t& code) {
  auto byte = [&](size_t k) { return static_cast<unsigned char>(text[k]); };
  unsigned char c = byte(i);
  int more = c < 0x80 ? 0 : c < 0xC2 ? -1 : c < 0xE0 ? 1 : c < 0xF0 ? 2 : c < 0xF5 ? 3 : -1;
  if (more < 0 || i + more >= text.size()) return false;
  code = more == 0 ? c : c & (0x3F >> more);
  for (int k = 1; k <= more; ++k) {
    if (!is_continuation(text[i + k])) return false;
    code = code << 6 | (byte(i + k) & 0x3F);
  }
  static constexpr uint32_t smallest[] = {0, 0x80, 0x800, 0x10000};
  i += more + 1;
  return code >= smallest[more] && code < CODE_POINTS && (code < 0xD800 || code >= 0xE000);
}

struct WordPiece {
  // The vocabulary and the rules.
  Pieces words, continuations;
  Id unknown = 0;
  int max_characters = 100;  // of a word; a longer one is unknown
  std::vector<std::string> special;
  std::vector<uint32_t> offsets;  // [CODE_POINTS + 1] into `normalised`
  std::string normalised;
  // What is remembered.
  Table memo;
  std::vector<Id> pool;   // of chunks with more than three ids
  uint64_t most;          // entries: memory does not grow with the text
  // The last block.
  std::vector<Id> ids;
  std::vector<int64_t> lengths;
  std::vector<OpenChunk> open;
  std::string scratch;

  explicit WordPiece(uint64_t most_entries) : most(most_entries) {}

  // Ids of all lines of a block; what the reference must answer is in `open`. text has 16 readable bytes behind n.
  void encode(const char* text, int64_t n) {
    ids.clear(), lengths.clear(), open.clear();
    int64_t i = 0;
    while (i < n) {
      int64_t before = ids.size();
      for (; i < n && text[i] != '\n';) {
        if (is_space(text[i])) {
          ++i;
          continue;
        }
        int64_t end = chunk_end(text, i, n);
        if (!chunk(text + i, end - i))
          open.push_back({i, end - i, static_cast<int64_t>(ids.size()), static_cast<int64_t>(lengths.size())});
        i = end;
      }
      ++i;
      lengths.push_back(ids.size() - before);
    }
  }

  // Append the ids of a chunk; false (and nothing appended) where the reference must answer.
  bool chunk(const char* p, int64_t length) {
    if (length > INLINE) return tokenize(Text(p, length));
    Key key(p, length);
    const Entry& entry = memo.at(key, length);
    if (entry.length) {
      const Id* known = entry.count <= 3 ? entry.ids : &pool[entry.ids[0]];
      ids.insert(ids.end(), known, known + entry.count);
      return true;
    }
    size_t before = ids.size();
    if (!tokenize(Text(p, length))) return false;
    remember(key, length, ids.data() + before, ids.size() - before);
    return true;
  }

  void remember(const Key& key, int length, const Id* found, size_t count) {
    if (count > 255 || memo.used >= most) return;
    if (count <= 3) return memo.insert(key, length, found, count, count);
    Id place = pool.size();
    pool.insert(pool.end(), found, found + count);
    memo.insert(key, length, &place, 1, count);
  }

  // Normalise a chunk, cut it into words and these into pieces.
  bool tokenize(Text chunk) {
    for (const std::string& token : special)
      if (chunk.find(token) != Text::npos) return false;
    scratch.clear();
    for (size_t i = 0; i < chunk.size();) {
      uint32_t code;
      if (!decode(chunk, i, code)) return false;
      Text becomes(normalised.data() + offsets[code], offsets[code + 1] - offsets[code]);
      if (becomes.size() == 1 && becomes[0] == OPEN) return false;
      scratch += becomes;
    }
    int end = scratch.size();
    scratch.append(INLINE, '\0');  // so that any key can be read
    int start = 0;
    for (int i = 0; i < end;) {
      if (scratch[i] == BREAK) {
        word(start, i);
        start = ++i;
      } else if (scratch[i] == ALONE) {
        word(start, i);
        start = ++i;
        for (++i; i < end && is_continuation(scratch[i]);) ++i;
        word(start, i);
        start = i;
      } else {
        ++i;
      }
    }
    word(start, end);
    return true;
  }

  // The longest piece first (Schuster and Nakajima, 2012); a word with a rest that is no piece is unknown as a whole.
  void word(int start, int end) {
    if (start == end) return;
    int characters = 0;
    for (int i = start; i < end; ++i) characters += !is_continuation(scratch[i]);
    size_t before = ids.size();
    bool known = characters <= max_characters;
    for (int at = start; known && at < end;) {
      Pieces& pieces = at == start ? words : continuations;
      int length = std::min(end - at, pieces.longest);
      Id id = 0;
      while (length > 0 && !pieces.find(scratch.data() + at, length, id)) --length;
      known = length > 0;
      ids.push_back(id);
      at += length;
    }
    if (!known) {
      ids.resize(before);
      ids.push_back(unknown);
    }
  }

  // Put the reference's answers where the open chunks were, and remember them.
  void resolve(const char* text, const Id* answers, const int64_t* counts) {
    std::vector<Id> whole;
    int64_t done = 0;
    for (size_t k = 0; k < open.size(); ++k) {
      const OpenChunk& chunk = open[k];
      whole.insert(whole.end(), ids.begin() + done, ids.begin() + chunk.place);
      whole.insert(whole.end(), answers, answers + counts[k]);
      lengths[chunk.line] += counts[k];
      if (chunk.length <= INLINE) {
        Key key(text + chunk.begin, chunk.length);
        if (!memo.at(key, chunk.length).length) remember(key, chunk.length, answers, counts[k]);
      }
      answers += counts[k];
      done = chunk.place;
    }
    whole.insert(whole.end(), ids.begin() + done, ids.end());
    ids.swap(whole);
  }
};

}  // namespace

extern "C" {

WordPiece* wordpiece_new(uint64_t most_entries, Id unknown, int max_characters) {
  auto* self = new WordPiece(most_entries);
  self->unknown = unknown;
  self->max_characters = max_characters;
  return self;
}
void wordpiece_delete(WordPiece* self) { delete self; }
void wordpiece_word(WordPiece* self, const char* text, int64_t n, Id id) { self->words.add(Text(text, n), id); }
void wordpiece_continuation(WordPiece* self, const char* text, int64_t n, Id id) { self->continuations.add(Text(text, n), id); }
void wordpiece_special(WordPiece* self, const char* text, int64_t n) { self->special.emplace_back(text, n); }
void wordpiece_code_points(WordPiece* self, const uint32_t* offsets, const char* normalised) {
  self->offsets.assign(offsets, offsets + CODE_POINTS + 1);
  self->normalised.assign(normalised, offsets[CODE_POINTS]);
}
void wordpiece_encode(WordPiece* self, const char* text, int64_t n, int64_t* sizes) {
  self->encode(text, n);
  sizes[0] = self->ids.size(), sizes[1] = self->lengths.size(), sizes[2] = self->open.size();
}
const OpenChunk* wordpiece_open(WordPiece* self) { return self->open.data(); }
int64_t wordpiece_resolve(WordPiece* self, const char* text, const Id* answers, const int64_t* counts) {
  self->resolve(text, answers, counts);
  return self->ids.size();
}
const Id* wordpiece_ids(WordPiece* self) { return self->ids.data(); }
const int64_t* wordpiece_lengths(WordPiece* self) { return self->lengths.data(); }
}
