// Quantization kernels for the CPU. Each computes exactly what qgraph/numerics defines, in the same
// order of operations: the tests compare bits. Built without contraction into FMA and without
// -ffast-math; see cpu.py.
//
// A contiguous tensor is seen as [outer, K, inner], K the axis a product sums over. inner == 1 is the
// row layout (blocks are contiguous), otherwise the column layout (blocks are strided, and the loops
// run across them). Magnitudes are compared as integer bits, so NaN wins every maximum.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr float kFloatMax = 3.4028234663852886e38f;
constexpr int64_t kColumns = 2048;  // columns worked on together in the column layout: long rows are read fastest
constexpr int64_t kRows = 64;  // rows worked on together where a column is one block
constexpr int64_t kSerial = 16384;  // elements below which one thread is faster

enum Scale : int { kTwoLevel, kCeil, kFloor, kFloat };

struct Format {
  int is_int, mantissa, min_exponent;  // min_exponent biased by 127
  float max;
  int scale, top_exponent;
};

inline uint32_t bits_of(float v) { uint32_t b; std::memcpy(&b, &v, 4); return b; }
inline float float_of(uint32_t b) { float v; std::memcpy(&v, &b, 4); return v; }

struct F32 {
  using type = float;
  static inline float load(float v) { return v; }
  static inline float store(float v) { return v; }
};
struct BF16 {
  using type = uint16_t;
  static inline float load(uint16_t v) { return float_of(uint32_t(v) << 16); }
  static inline uint16_t store(float v) {
    const uint32_t b = bits_of(v);
    return v != v ? 0x7fc0 : uint16_t((b + 0x7fff + ((b >> 16) & 1)) >> 16);
  }
};

inline float round_bf16(float v) { return BF16::load(BF16::store(v)); }

// Nearest, ties to even: adding and subtracting 2**23 steps rounds to whole steps.
template <bool kInt>
inline float round_nearest(float a, int mantissa, uint32_t min_exponent) {
  uint32_t e = bits_of(a) >> 23;
  e = e > min_exponent ? e : min_exponent;
  const float c = kInt ? 8388608.0f : float_of((e + 23 - mantissa) << 23);
  return (a + c) - c;
}

template <bool kInt>
inline float round_stochastic(float a, int mantissa, uint32_t min_exponent, float noise) {
  uint32_t e = bits_of(a) >> 23;
  e = (e > min_exponent ? e : min_exponent) - mantissa;
  const float step = kInt ? 1.0f : float_of(e << 23);
  const float inverse = kInt ? 1.0f : float_of((254 - e) << 23);
  return std::floor(a * inverse + noise) * step;
}

template <bool kInt, bool kNoise, bool kDivide>
inline float apply(float v, float encode, float decode, float tensor_scale, const Format& f, float noise) {
  const float scaled = kDivide ? v / encode : v * encode;
  const uint32_t sign = bits_of(scaled) & 0x80000000u;
  float a = float_of(bits_of(scaled) & 0x7fffffffu);
  a = a > f.max ? f.max : a;
  float r = kNoise ? round_stochastic<kInt>(a, f.mantissa, f.min_exponent, noise)
                   : round_nearest<kInt>(a, f.mantissa, f.min_exponent);
  r = r > f.max ? f.max : r;
  return float_of(bits_of(r) | sign) * decode * tensor_scale;
}

// ---- scales ----------------------------------------------------------------------------------

struct Tensorwide {
  float wanted, inverse, scale;  // S_enc/max, 1/S_enc, amax/(max*448)
};

Tensorwide tensorwide(uint32_t amax_bits, const Format& f) {
  const float amax = float_of(amax_bits);
  if (f.scale != kTwoLevel) return {0.0f, 0.0f, 1.0f};
  const float bound = f.max * 448.0f;
  float encode = bound / amax;
  encode = encode > kFloatMax ? kFloatMax : encode;
  if (amax == 0.0f || encode == 0.0f) encode = 1.0f;
  return {encode * (1.0f / f.max), 1.0f / encode, amax / bound};
}

void make_scales(const uint32_t* amax, float* encode, float* decode, int64_t n, const Tensorwide& t,
                 const Format& f) {
  if (f.scale == kTwoLevel) {
    for (int64_t i = 0; i < n; ++i) {
      float s = float_of(amax[i]) * t.wanted;
      s = s > 448.0f ? 448.0f : s;
      s = round_nearest<false>(s, 3, 121);
      const float e = 1.0f / (s * t.inverse);
      encode[i] = e > kFloatMax ? kFloatMax : e;
      decode[i] = s;
    }
  } else if (f.scale == kFloat) {
    for (int64_t i = 0; i < n; ++i) {
      const float a = float_of(amax[i]);
      const bool usable = a != 0.0f && amax[i] != 0x7f800000u;
      if (f.is_int) {
        const float d = a / f.max;
        encode[i] = decode[i] = d == 0.0f ? 1.0f : d;  // an infinity makes its block NaN
      } else {
        const float e = f.max / a;
        encode[i] = usable ? (e > kFloatMax ? kFloatMax : e) : 1.0f;
        decode[i] = amax[i] == 0x7f800000u ? NAN : 1.0f / encode[i];
      }
    }
  } else {
    const float inverse_max = 1.0f / f.max;
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t b = f.scale == kCeil ? bits_of(float_of(amax[i]) * inverse_max) : amax[i];
      const int32_t e = b >> 23, mantissa = b & 0x7fffff;
      int32_t byte = f.scale == kFloor ? e - f.top_exponent
                     : e == 0          ? (mantissa > 0x400000)
                                       : e + (mantissa > 0);
      byte = std::min(std::max(byte, 0), 254);
      const bool bad = amax[i] >= 0x7f800000u;
      decode[i] = bad ? NAN : float_of(byte == 0 ? 0x00400000u : uint32_t(byte) << 23);
      encode[i] = bad ? NAN : float_of(byte == 254 ? 0x00400000u : uint32_t(254 - byte) << 23);
    }
  }
}

// ---- random bits: Philox4x32-10, n counters from `first` on, `stride` apart -----------------------

void philox(uint64_t first, uint64_t stride, int64_t n, uint32_t seed, uint32_t site, uint32_t* w0,
            uint32_t* w1, uint32_t* w2, uint32_t* w3) {
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t counter = first + uint64_t(i) * stride;
    uint32_t a = uint32_t(counter), b = uint32_t(counter >> 32), c = 0, d = 0;
    uint32_t k0 = seed, k1 = site;
    for (int round = 0; round < 10; ++round) {
      const uint64_t p = uint64_t(a) * 0xD2511F53u, q = uint64_t(c) * 0xCD9E8D57u;
      a = uint32_t(q >> 32) ^ b ^ k0;
      b = uint32_t(q);
      c = uint32_t(p >> 32) ^ d ^ k1;
      d = uint32_t(p);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    w0[i] = a; w1[i] = b; w2[i] = c; w3[i] = d;
  }
}

// ---- fake quantization ---------------------------------------------------------------------------

struct Job {
  int64_t outer, size, inner;  // the tensor, [outer, size, inner]
  int64_t across, along;       // the block; along == size for whole rows
  int64_t rows;                // row layout: rows of one matrix, so that tiles do not cross matrices
  int whole;                   // one scale for the tensor
  uint32_t amax, seed, site;
};

struct Buffers {
  std::vector<uint32_t> amax, words;
  std::vector<float> encode, decode, noise;
};

// The largest magnitude of each of n columns over rows k0 to k1, where it is above what `amax` holds.
template <class D>
void column_amax(const typename D::type* x, int64_t inner, int64_t k0, int64_t k1, int64_t n, uint32_t* amax) {
  for (int64_t k = k0; k < k1; ++k) {
    const auto* row = x + k * inner;
    for (int64_t c = 0; c < n; ++c) {
      const uint32_t b = bits_of(D::load(row[c])) & 0x7fffffffu;
      amax[c] = amax[c] > b ? amax[c] : b;
    }
  }
}

// The scales of n columns from their largest magnitudes, `across` columns sharing one.
void column_scales(uint32_t* amax, int64_t n, const Job& job, const Tensorwide& t, const Format& f, float* encode,
                   float* decode) {
  if (job.across > 1 && !job.whole) {
    for (int64_t c = 0; c < n; c += job.across) {
      const int64_t end = std::min(c + job.across, n);
      std::fill(amax + c, amax + end, *std::max_element(amax + c, amax + end));
    }
  }
  make_scales(amax, encode, decode, n, t, f);
}

// n columns from c0 on, rows k0 to k1.
template <class D, bool kInt, bool kNoise, bool kDivide>
void round_columns(const typename D::type* x, typename D::type* y, const Job& job, const Format& f,
                   const Tensorwide& t, int64_t outer, int64_t k0, int64_t k1, int64_t c0, int64_t n,
                   const float* encode, const float* decode, float* noise, uint32_t* words) {
  const int64_t base = outer * job.size * job.inner + c0, chunks = (job.size + 15) / 16;
  for (int64_t k = k0; k < k1; ++k) {
    if (kNoise) {
      if (k == k0 || k % 16 == 0) {
        const uint64_t first = uint64_t(outer * job.inner + c0) * chunks + k / 16;
        philox(first, chunks, n, job.seed, job.site, words, words + n, words + 2 * n, words + 3 * n);
      }
      const uint32_t* word = words + (k % 16) / 4 * n;
      const int shift = 8 * (k % 4);
      for (int64_t c = 0; c < n; ++c) noise[c] = float(int32_t((word[c] >> shift) & 255)) * (1.0f / 256);
    }
    const auto* row = x + base + k * job.inner;
    auto* out = y + base + k * job.inner;
    const float ts = t.scale;
    for (int64_t c = 0; c < n; ++c)
      out[c] = D::store(apply<kInt, kNoise, kDivide>(D::load(row[c]), encode[c], decode[c], ts, f,
                                                     kNoise ? noise[c] : 0.0f));
  }
}

// One block a column of one matrix: rows are read in order twice, first for the scales of all columns.
template <class D, bool kInt, bool kNoise, bool kDivide>
void whole_columns(const typename D::type* x, typename D::type* y, const Job& job, const Format& f,
                   const Tensorwide& t, bool serial) {
  const int64_t n = job.inner, pieces = (job.size + kRows - 1) / kRows;
  std::vector<uint32_t> amax(n, job.whole ? job.amax : 0u);
  std::vector<float> encode(n), decode(n);
#pragma omp parallel if (!serial)
  {
    if (!job.whole) {
      std::vector<uint32_t> own(n, 0u);
#pragma omp for schedule(static)
      for (int64_t i = 0; i < pieces; ++i)
        column_amax<D>(x, n, i * kRows, std::min((i + 1) * kRows, job.size), n, own.data());
#pragma omp critical
      for (int64_t c = 0; c < n; ++c) amax[c] = std::max(amax[c], own[c]);
#pragma omp barrier
    }
#pragma omp single
    column_scales(amax.data(), n, job, t, f, encode.data(), decode.data());
    std::vector<float> noise(kNoise ? n : 0);
    std::vector<uint32_t> words(kNoise ? 4 * n : 0);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < pieces; ++i)
      round_columns<D, kInt, kNoise, kDivide>(x, y, job, f, t, 0, i * kRows, std::min((i + 1) * kRows, job.size), 0,
                                              n, encode.data(), decode.data(), noise.data(), words.data());
  }
}

template <class D, bool kInt, bool kNoise, bool kDivide, int kAlong>
void row_blocks(const typename D::type* x, typename D::type* y, const Job& job, const Format& f,
                const Tensorwide& t, int64_t row0, int64_t row1, int64_t k0, int64_t k1, Buffers& s) {
  const int64_t along = kAlong ? kAlong : job.along;
  const int64_t n = (k1 - k0 + along - 1) / along;
  uint32_t* amax = s.amax.data();
  std::fill(amax, amax + n, job.whole ? job.amax : 0u);
  if (!job.whole) {
    for (int64_t r = row0; r < row1; ++r) {
      const auto* row = x + r * job.size + k0;
      for (int64_t j = 0; j < n; ++j) {
        const auto* block = row + j * along;
        const int64_t len = std::min(along, k1 - k0 - j * along);
        uint32_t m = 0;
        if (kAlong && len == kAlong) {
          for (int l = 0; l < kAlong; ++l) {
            const uint32_t b = bits_of(D::load(block[l])) & 0x7fffffffu;
            m = m > b ? m : b;
          }
        } else {
          for (int64_t l = 0; l < len; ++l) {
            const uint32_t b = bits_of(D::load(block[l])) & 0x7fffffffu;
            m = m > b ? m : b;
          }
        }
        amax[j] = amax[j] > m ? amax[j] : m;
      }
    }
  }
  float *encode = s.encode.data(), *decode = s.decode.data(), *noise = s.noise.data();
  make_scales(amax, encode, decode, n, t, f);
  const int64_t chunks = (job.size + 15) / 16, used = (k1 - k0 + 15) / 16;
  const float ts = t.scale;
  for (int64_t r = row0; r < row1; ++r) {
    if (kNoise) {
      uint32_t* w = s.words.data();
      philox(uint64_t(r) * chunks + k0 / 16, 1, used, job.seed, job.site, w, w + used, w + 2 * used,
             w + 3 * used);
      for (int64_t j = 0; j < used; ++j)
        for (int q = 0; q < 4; ++q) {
          const uint32_t word = w[q * used + j];
          for (int l = 0; l < 4; ++l)
            noise[j * 16 + q * 4 + l] = float(int32_t((word >> (8 * l)) & 255)) * (1.0f / 256);
        }
    }
    const auto* row = x + r * job.size + k0;
    auto* out = y + r * job.size + k0;
    for (int64_t j = 0; j < n; ++j) {
      const int64_t start = j * along, len = std::min(along, k1 - k0 - start);
      const float e = encode[j], d = decode[j];
      if (kAlong && len == kAlong) {
        for (int l = 0; l < kAlong; ++l)
          out[start + l] = D::store(apply<kInt, kNoise, kDivide>(D::load(row[start + l]), e, d, ts, f,
                                                                 kNoise ? noise[start + l] : 0.0f));
      } else {
        for (int64_t l = 0; l < len; ++l)
          out[start + l] = D::store(apply<kInt, kNoise, kDivide>(D::load(row[start + l]), e, d, ts, f,
                                                                 kNoise ? noise[start + l] : 0.0f));
      }
    }
  }
}

template <class D, bool kInt, bool kNoise, bool kDivide>
void run(const void* input, void* output, const Job& job, const Format& f) {
  const auto* x = static_cast<const typename D::type*>(input);
  auto* y = static_cast<typename D::type*>(output);
  const Tensorwide t = tensorwide(job.amax, f);
  const bool serial = job.outer * job.size * job.inner < kSerial;
  if (job.inner > 1 && job.outer == 1 && job.along >= job.size) {
    whole_columns<D, kInt, kNoise, kDivide>(x, y, job, f, t, serial);
    return;
  }
  if (job.inner > 1) {
    const int64_t blocks = (job.size + job.along - 1) / job.along;
    const int64_t width = std::min(job.inner, std::max<int64_t>(1, kColumns / job.across) * job.across);
    const int64_t strips = (job.inner + width - 1) / width;
    const int64_t items = job.outer * blocks * strips;
#pragma omp parallel if (!serial)
    {
      std::vector<uint32_t> amax(width), words(kNoise ? 4 * width : 0);
      std::vector<float> encode(width), decode(width), noise(kNoise ? width : 0);
#pragma omp for
      for (int64_t i = 0; i < items; ++i) {
        const int64_t c0 = i % strips * width, k0 = i / strips % blocks * job.along, o = i / strips / blocks;
        const int64_t k1 = std::min(k0 + job.along, job.size), n = std::min(width, job.inner - c0);
        std::fill(amax.begin(), amax.end(), job.whole ? job.amax : 0u);
        if (!job.whole)
          column_amax<D>(x + o * job.size * job.inner + c0, job.inner, k0, k1, n, amax.data());
        column_scales(amax.data(), n, job, t, f, encode.data(), decode.data());
        round_columns<D, kInt, kNoise, kDivide>(x, y, job, f, t, o, k0, k1, c0, n, encode.data(), decode.data(),
                                                noise.data(), words.data());
      }
    }
    return;
  }
  const int64_t span = std::min(job.size, job.along >= job.size ? job.size : 64 * job.along);
  const int64_t pieces = (job.size + span - 1) / span;
  const int64_t groups = (job.rows + job.across - 1) / job.across, matrices = job.outer / job.rows;
  const int64_t items = matrices * groups * pieces;
#pragma omp parallel if (!serial)
  {
    const int64_t room = span + 16;
    Buffers s{std::vector<uint32_t>(room), std::vector<uint32_t>(room), std::vector<float>(room),
              std::vector<float>(room), std::vector<float>(room)};
#pragma omp for
    for (int64_t i = 0; i < items; ++i) {
      const int64_t k0 = i % pieces * span, matrix = i / pieces / groups, g = i / pieces % groups;
      const int64_t row0 = matrix * job.rows + g * job.across;
      const int64_t row1 = std::min(row0 + job.across, (matrix + 1) * job.rows);
      const int64_t k1 = std::min(k0 + span, job.size);
      if (job.along == 16)
        row_blocks<D, kInt, kNoise, kDivide, 16>(x, y, job, f, t, row0, row1, k0, k1, s);
      else if (job.along == 32)
        row_blocks<D, kInt, kNoise, kDivide, 32>(x, y, job, f, t, row0, row1, k0, k1, s);
      else
        row_blocks<D, kInt, kNoise, kDivide, 0>(x, y, job, f, t, row0, row1, k0, k1, s);
    }
  }
}

template <class D>
void dispatch(const void* x, void* y, const Job& job, const Format& f, bool noise) {
  const bool divide = f.is_int && f.scale == kFloat;
  if (f.is_int) {
    if (divide) noise ? run<D, true, true, true>(x, y, job, f) : run<D, true, false, true>(x, y, job, f);
    else noise ? run<D, true, true, false>(x, y, job, f) : run<D, true, false, false>(x, y, job, f);
  } else {
    noise ? run<D, false, true, false>(x, y, job, f) : run<D, false, false, false>(x, y, job, f);
  }
}

template <class D>
uint32_t largest(const void* input, int64_t n) {
  const auto* x = static_cast<const typename D::type*>(input);
  uint32_t m = 0;
#pragma omp parallel for simd reduction(max : m) if (parallel : n >= kSerial)
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t b = bits_of(D::load(x[i])) & 0x7fffffffu;
    m = m > b ? m : b;
  }
  return m;
}

// ---- rotation: [outer, size, inner] -> [outer, padded, inner], returning the largest magnitude ----

// Rotates w groups of n values side by side, b [n, w]; returns their largest magnitude.
template <class D>
uint32_t rotate_groups(float* b, int n, int64_t w, float norm, bool bf16) {
  for (int distance = 1; distance < n; distance *= 2)
    for (int start = 0; start < n; start += 2 * distance)
      for (int l = start; l < start + distance; ++l) {
        float *low = b + l * w, *high = b + (l + distance) * w;
        for (int64_t c = 0; c < w; ++c) {
          const float p = low[c], q = high[c];
          low[c] = p + q;
          high[c] = p - q;
        }
      }
  uint32_t m = 0;
  for (int64_t i = 0; i < n * w; ++i) {
    float v = b[i] * norm;
    v = D::load(D::store(bf16 ? round_bf16(v) : v));
    b[i] = v;
    const uint32_t u = bits_of(v) & 0x7fffffffu;
    m = m > u ? m : u;
  }
  return m;
}

template <class D>
uint32_t rotate(const void* input, void* output, int64_t outer, int64_t size, int64_t inner, int n,
                const float* signs, bool bf16) {
  const auto* x = static_cast<const typename D::type*>(input);
  auto* y = static_cast<typename D::type*>(output);
  const int64_t chunks = (size + n - 1) / n;
  // In the row layout a group is contiguous: groups are turned, so that loops across them vectorize.
  const bool by_row = inner == 1;
  const int64_t columns = by_row ? outer * chunks : inner, width = std::min<int64_t>(columns, by_row ? 16 : 256);
  const int64_t strips = (columns + width - 1) / width, items = by_row ? strips : outer * chunks * strips;
  const float norm = float(1.0 / std::sqrt(double(n)));
  uint32_t result = 0;
#pragma omp parallel reduction(max : result) if (outer * size * inner >= kSerial)
  {
    std::vector<float> buffer(n * width);
    float* b = buffer.data();
#pragma omp for
    for (int64_t i = 0; i < items; ++i) {
      const int64_t c0 = i % strips * width, w = std::min(width, columns - c0);
      if (by_row) {
        for (int64_t c = 0; c < w; ++c) {
          const int64_t k0 = (c0 + c) % chunks * n, inside = std::min<int64_t>(n, size - k0);
          const auto* from = x + (c0 + c) / chunks * size + k0;
          for (int64_t l = 0; l < n; ++l) b[l * w + c] = (l < inside ? D::load(from[l]) : 0.0f) * signs[l];
        }
        const uint32_t m = rotate_groups<D>(b, n, w, norm, bf16);
        result = result > m ? result : m;
        for (int64_t c = 0; c < w; ++c)
          for (int64_t l = 0; l < n; ++l) y[(c0 + c) * n + l] = D::store(b[l * w + c]);
        continue;
      }
      const int64_t k0 = i / strips % chunks * n, o = i / strips / chunks;
      const auto* from = x + (o * size + k0) * inner + c0;
      for (int64_t l = 0; l < n; ++l) {
        const bool inside = k0 + l < size;
        for (int64_t c = 0; c < w; ++c) b[l * w + c] = (inside ? D::load(from[l * inner + c]) : 0.0f) * signs[l];
      }
      const uint32_t m = rotate_groups<D>(b, n, w, norm, bf16);
      result = result > m ? result : m;
      auto* to = y + (o * chunks * n + k0) * inner + c0;
      for (int64_t l = 0; l < n; ++l)
        for (int64_t c = 0; c < w; ++c) to[l * inner + c] = D::store(b[l * w + c]);
    }
  }
  return result;
}

// ---- any format: scales come from outside, and the rounding is chosen at run time ------------------

// What qgraph/numerics/cast.py says of an element; kind 0 float, 1 integer, 2 codebook.
struct Element {
  int kind, mantissa, min_exponent, mode, bits, subnormals, saturates, ieee, one_zero, divides, plus_zero;
  float min, max, unit;
  int count;
  const float *values, *limits;
};

enum Mode : int {
  kNearest, kAway, kZero, kOdd, kTruncate, kUp, kDown, kToOdd, kStochastic, kEqual
};

inline bool goes_away(float steps, float low, bool odd, bool negative, const Element& e, float noise) {
  const float fraction = steps - low;
  switch (e.mode) {
    case kNearest: return fraction > 0.5f || (fraction == 0.5f && odd);
    case kAway: return fraction >= 0.5f;
    case kZero: return fraction > 0.5f;
    case kOdd: return fraction > 0.5f || (fraction == 0.5f && !odd);
    case kTruncate: return false;
    case kUp: return fraction > 0.0f && !negative;
    case kDown: return fraction > 0.0f && negative;
    case kToOdd: return fraction > 0.0f && !odd;
    case kStochastic: return steps + noise >= low + 1.0f;
    default: return fraction > 0.0f && noise >= 0.5f;
  }
}

inline float sign_from(float size, float sign) {
  return float_of((bits_of(size) & 0x7fffffffu) | (bits_of(sign) & 0x80000000u));
}

inline float look_up(float x, const Element& e, float noise) {
  if (x != x) return x;
  int low = int(std::upper_bound(e.values, e.values + e.count, x) - e.values) - 1;
  low = std::min(std::max(low, 0), e.count - 2);
  const bool negative = x < 0.0f && e.values[low + 1] <= 0.0f;
  const int near = low + negative, far = low + !negative;
  const float start = e.values[near], end = e.values[far];
  if (negative ? x <= end : x >= end) return end;
  if (negative ? x >= start : x <= start) return start;
  float fraction;
  if (e.mode <= kOdd) {
    const float limit = e.limits[low];
    fraction = x == limit ? 0.5f : (negative ? x < limit : x > limit) ? 0.75f : 0.25f;
  } else {
    fraction = (x - start) / (end - start);
    fraction = std::min(std::max(fraction, 1.401298464324817e-45f), 1.0f - 0x1p-24f);
  }
  return goes_away(fraction, 0.0f, near & 1, negative, e, noise) ? end : start;
}

inline float round_any(float x, const Element& e, float noise) {
  if (e.kind == 2) return look_up(x, e, noise);
  if (e.unit != 1.0f) x = x / e.unit;
  float bounded = x;
  if (e.saturates) bounded = x < e.min ? e.min : x > e.max ? e.max : x;
  else if (e.min == 0.0f) bounded = x < 0.0f ? 0.0f : x;
  float a = float_of(bits_of(bounded) & 0x7fffffffu);
  a = a > kFloatMax ? kFloatMax : a;
  float step = 1.0f;
  int field = -1;
  if (e.kind == 0) {
    int exponent = int(bits_of(a) >> 23);
    if (exponent == 0 && a > 0.0f) exponent = std::ilogb(a) + 127;
    const bool below = exponent < e.min_exponent;
    const int normal = below ? e.min_exponent : exponent;
    const int power = normal - (below && !e.subnormals ? 0 : e.mantissa);
    step = power > 0 ? float_of(uint32_t(power) << 23) : float_of(0x00800000u >> (1 - power));
    if (e.mantissa == 0) field = below ? 0 : normal - e.min_exponent + 1;
  }
  const float steps = a / step, low = std::floor(steps);
  const bool odd = field < 0 ? (a == a && (int64_t(low) & 1)) : (field & 1);
  float size = a == a ? (low + float(goes_away(steps, low, odd, x < 0.0f, e, noise))) * step : a;
  if (!e.saturates && (size > e.max || std::isinf(x))) {
    const bool stays = std::isfinite(x) && (e.mode == kTruncate || (e.mode == kUp && x < 0.0f) ||
                                            (e.mode == kDown && x > 0.0f));
    size = stays ? e.max : e.ieee ? INFINITY : NAN;
  }
  float result = sign_from(size, bounded);
  if (e.saturates) result = result < e.min ? e.min : result > e.max ? e.max : result;
  if (e.one_zero && result == 0.0f) result = 0.0f;
  return e.unit != 1.0f ? result * e.unit : result;
}

// [matrices, rows, size] with blocks of across x along; `by_column` says that in memory size comes
// before rows. Scales are [matrices, row blocks, blocks].
struct Grid {
  int64_t matrices, rows, size, across, along;
  int by_column;
  int64_t row_blocks() const { return (rows + across - 1) / across; }
  int64_t blocks() const { return (size + along - 1) / along; }
};

constexpr int64_t kStrip = 256;  // rows worked on together in the column layout

void block_amax(const float* x, float* out, const Grid& g) {
  const int64_t row_blocks = g.row_blocks(), blocks = g.blocks();
  const bool serial = g.matrices * g.rows * g.size < kSerial;
#pragma omp parallel for collapse(2) if (!serial)
  for (int64_t m = 0; m < g.matrices; ++m)
    for (int64_t b = 0; b < row_blocks; ++b) {
      std::vector<uint32_t> top(blocks, 0);
      const int64_t r0 = b * g.across, r1 = std::min(r0 + g.across, g.rows);
      const float* base = x + m * g.rows * g.size;
      for (int64_t r = r0; r < r1; ++r)
        for (int64_t j = 0; j < blocks; ++j) {
          const int64_t k1 = std::min((j + 1) * g.along, g.size);
          uint32_t t = top[j];
          for (int64_t k = j * g.along; k < k1; ++k) {
            const uint32_t v = bits_of(g.by_column ? base[k * g.rows + r] : base[r * g.size + k]) & 0x7fffffffu;
            t = t > v ? t : v;
          }
          top[j] = t;
        }
      float* to = out + (m * row_blocks + b) * blocks;
      for (int64_t j = 0; j < blocks; ++j) to[j] = float_of(top[j]);
    }
}

// The same with rows side by side in memory: the loop over them is the inner one.
void block_amax_columns(const float* x, float* out, const Grid& g) {
  const int64_t row_blocks = g.row_blocks(), blocks = g.blocks();
  const bool serial = g.matrices * g.rows * g.size < kSerial;
#pragma omp parallel for collapse(2) if (!serial)
  for (int64_t m = 0; m < g.matrices; ++m)
    for (int64_t j = 0; j < blocks; ++j) {
      std::vector<uint32_t> top(g.rows, 0);
      const int64_t k1 = std::min((j + 1) * g.along, g.size);
      for (int64_t k = j * g.along; k < k1; ++k) {
        const float* row = x + (m * g.size + k) * g.rows;
        for (int64_t r = 0; r < g.rows; ++r) {
          const uint32_t v = bits_of(row[r]) & 0x7fffffffu;
          top[r] = top[r] > v ? top[r] : v;
        }
      }
      for (int64_t b = 0; b < row_blocks; ++b) {
        const int64_t r1 = std::min((b + 1) * g.across, g.rows);
        const uint32_t t = *std::max_element(top.data() + b * g.across, top.data() + r1);
        out[(m * row_blocks + b) * blocks + j] = float_of(t);
      }
    }
}

// What of a block's scales there is; a null pointer is left out.
struct BlockScales {
  const float *encode, *zero, *decode, *whole;
};

// How elements are rounded: the usual cases without a branch, so that loops vectorize, and the rest.
struct RoundAny {
  Element e;
  inline float operator()(float x, float noise) const { return round_any(x, e, noise); }
};

template <bool kInt, bool kNoise>
struct RoundFast {  // floats with a mantissa, integers; nearest or stochastic
  int mantissa;
  uint32_t min_exponent;
  int subnormals, one_zero;
  float min, max;
  inline float operator()(float x, float noise) const {
    x = x < min ? min : x > max ? max : x;
    const uint32_t sign = bits_of(x) & 0x80000000u;
    const float a = float_of(bits_of(x) & 0x7fffffffu);
    int m = mantissa;
    if (!kInt && !subnormals) m = (bits_of(a) >> 23) < min_exponent ? 0 : m;
    float r = kNoise ? round_stochastic<kInt>(a, m, min_exponent, noise) : round_nearest<kInt>(a, m, min_exponent);
    r = float_of(bits_of(r) | sign);
    r = r < min ? min : r > max ? max : r;
    return one_zero ? r + 0.0f : r;
  }
};

struct RoundList {  // up to 16 values, to nearest: a limit passed is one code more
  int count;
  float values[16], limits[16];
  inline float operator()(float x, float) const {
    int n = 0;
    for (int i = 0; i < 15; ++i) n += i & 1 ? x >= limits[i] : x > limits[i];
    const float v = values[n];
    return x != x ? x : v;
  }
};

template <class R>
inline float one(float v, float encode, float zero, float decode, float whole, const Element& e, int parts,
                 const R& round, float noise) {
  float q = e.divides ? v / encode : v * encode;
  if (parts & 1) q = q - zero;
  if (e.plus_zero) q = q + 0.0f;
  q = round(q, noise);
  if (!(parts & 2)) return q;
  if (parts & 1) q = q + zero;
  q = q * decode;
  if (parts & 4) q = q * whole;
  return e.plus_zero ? q + 0.0f : q;
}

template <class R, bool kRandom>
void round_blocks(const float* x, float* y, const Grid& g, const BlockScales& s, const Element& e, const R& round,
                  uint32_t seed, uint32_t site) {
  const int64_t row_blocks = g.row_blocks(), blocks = g.blocks();
  const int width = e.bits <= 8 ? 8 : e.bits <= 16 ? 16 : 32, per = 32 / width;
  const int64_t served = 128 / width, chunks = (g.size + served - 1) / served;
  const int parts = (s.zero ? 1 : 0) | (s.decode ? 2 : 0) | (s.whole ? 4 : 0);
  const bool serial = g.matrices * g.rows * g.size < kSerial;
  const float share = 1.0f / float(1 << e.bits);
  const int64_t strip = g.by_column ? std::min(kStrip, g.rows) : 1, strips = (g.rows + strip - 1) / strip;
#pragma omp parallel if (!serial)
  {
    std::vector<uint32_t> words(4 * std::max(strip, g.by_column ? 0 : chunks));
    std::vector<float> noise(kRandom ? (g.by_column ? served * strip : chunks * served) : 0);
    std::vector<float> along(4 * strip);
    uint32_t* w = words.data();
    const auto field = [&](uint32_t word, int64_t l) {
      const uint32_t f = (word >> (width * (l % per))) & (~0u >> (32 - width));
      return float(int32_t(f >> (width - e.bits))) * share;
    };
#pragma omp for collapse(2)
    for (int64_t m = 0; m < g.matrices; ++m)
      for (int64_t p = 0; p < strips; ++p) {
        const int64_t r0 = p * strip, n = std::min(strip, g.rows - r0);
        if (!g.by_column) {
          const float* row = x + (m * g.rows + r0) * g.size;
          float* out = y + (m * g.rows + r0) * g.size;
          if (kRandom) {
            philox(uint64_t(m * g.rows + r0) * chunks, 1, chunks, seed, site, w, w + chunks, w + 2 * chunks,
                   w + 3 * chunks);
            for (int64_t c = 0; c < chunks; ++c)
              for (int64_t l = 0; l < served; ++l) noise[c * served + l] = field(w[l / per * chunks + c], l);
          }
          for (int64_t j = 0; j < blocks; ++j) {
            const int64_t i = (m * row_blocks + r0 / g.across) * blocks + j;
            const float en = s.encode[i], ze = s.zero ? s.zero[i] : 0.0f, de = s.decode ? s.decode[i] : 1.0f,
                        wh = s.whole ? s.whole[i] : 1.0f;
            const int64_t k1 = std::min((j + 1) * g.along, g.size);
            for (int64_t k = j * g.along; k < k1; ++k)
              out[k] = one(row[k], en, ze, de, wh, e, parts, round, kRandom ? noise[k] : 0.0f);
          }
          continue;
        }
        float *en = along.data(), *ze = en + strip, *de = ze + strip, *wh = de + strip;
        for (int64_t k = 0; k < g.size; ++k) {
          if (k % g.along == 0)
            for (int64_t r = 0; r < n; ++r) {
              const int64_t i = (m * row_blocks + (r0 + r) / g.across) * blocks + k / g.along;
              en[r] = s.encode[i];
              ze[r] = s.zero ? s.zero[i] : 0.0f;
              de[r] = s.decode ? s.decode[i] : 1.0f;
              wh[r] = s.whole ? s.whole[i] : 1.0f;
            }
          if (kRandom && k % served == 0) {
            philox(uint64_t(m * g.rows + r0) * chunks + k / served, chunks, n, seed, site, w, w + n, w + 2 * n,
                   w + 3 * n);
            for (int64_t l = 0; l < served; ++l)
              for (int64_t r = 0; r < n; ++r) noise[l * strip + r] = field(w[l / per * n + r], l);
          }
          const float* drawn = kRandom ? noise.data() + k % served * strip : nullptr;
          const float* row = x + (m * g.size + k) * g.rows + r0;
          float* out = y + (m * g.size + k) * g.rows + r0;
          for (int64_t r = 0; r < n; ++r)
            out[r] = one(row[r], en[r], ze[r], de[r], wh[r], e, parts, round, kRandom ? drawn[r] : 0.0f);
        }
      }
  }
}

template <bool kInt>
RoundFast<kInt, false> fast_nearest(const Element& e) {
  return {e.mantissa, uint32_t(e.min_exponent), e.subnormals, e.one_zero, e.min, e.max};
}
template <bool kInt>
RoundFast<kInt, true> fast_stochastic(const Element& e) {
  return {e.mantissa, uint32_t(e.min_exponent), e.subnormals, e.one_zero, e.min, e.max};
}

void choose(const float* x, float* y, const Grid& g, const BlockScales& s, const Element& e, int random,
            uint32_t seed, uint32_t site) {
  // The addition that rounds must stay in float32's range, and the step must be a normal number.
  const int top = int(bits_of(e.max) >> 23);
  const bool plain = e.kind != 2 && e.saturates && e.unit == 1.0f &&
                     (e.kind == 1 || (e.mantissa > 0 && top + 23 - e.mantissa < 254 && e.min_exponent - e.mantissa > 0));
  if (plain && e.mode == kNearest) {
    if (e.kind == 1) return round_blocks<RoundFast<true, false>, false>(x, y, g, s, e, fast_nearest<true>(e), seed, site);
    return round_blocks<RoundFast<false, false>, false>(x, y, g, s, e, fast_nearest<false>(e), seed, site);
  }
  if (plain && e.mode == kStochastic && random) {
    if (e.kind == 1) return round_blocks<RoundFast<true, true>, true>(x, y, g, s, e, fast_stochastic<true>(e), seed, site);
    return round_blocks<RoundFast<false, true>, true>(x, y, g, s, e, fast_stochastic<false>(e), seed, site);
  }
  if (e.kind == 2 && e.count <= 16 && e.mode == kNearest) {
    RoundList list{e.count, {}, {}};
    for (int i = 0; i < 16; ++i) {
      list.values[i] = e.values[std::min(i, e.count - 1)];
      list.limits[i] = i < e.count - 1 ? e.limits[i] : INFINITY;
    }
    return round_blocks<RoundList, false>(x, y, g, s, e, list, seed, site);
  }
  if (random) return round_blocks<RoundAny, true>(x, y, g, s, e, {e}, seed, site);
  round_blocks<RoundAny, false>(x, y, g, s, e, {e}, seed, site);
}

// The error of each block, as qgraph/numerics/ranges.py sums it: 0 squared, float64, along a row and from
// row to row; 1 absolute and 2 squared, float32, along each row, then halves of the rows onto halves.
void block_error(const float* x, const float* y, double* out, const Grid& g, int kind) {
  const int64_t row_blocks = g.row_blocks(), blocks = g.blocks();
  const bool serial = g.matrices * g.rows * g.size < kSerial;
  const int64_t r_step = g.by_column ? 1 : g.size, k_step = g.by_column ? g.rows : 1;
  int64_t high = 1;
  while (high < g.across) high *= 2;
#pragma omp parallel if (!serial)
  {
    std::vector<float> sums(high);
#pragma omp for collapse(2)
    for (int64_t m = 0; m < g.matrices; ++m)
      for (int64_t b = 0; b < row_blocks; ++b) {
        const int64_t r1 = std::min((b + 1) * g.across, g.rows);
        for (int64_t j = 0; j < blocks; ++j) {
          const int64_t k1 = std::min((j + 1) * g.along, g.size);
          std::fill(sums.begin(), sums.end(), 0.0f);
          double total = 0.0;
          for (int64_t r = b * g.across; r < r1; ++r) {
            float sum = 0.0f;
            for (int64_t k = j * g.along; k < k1; ++k) {
              const int64_t at = m * g.rows * g.size + r * r_step + k * k_step;
              if (kind == 0) {
                const double d = double(y[at]) - double(x[at]);
                total += d * d;
              } else {
                const float d = std::fabs(y[at] - x[at]);
                sum += kind == 2 ? d * d : d;
              }
            }
            sums[r - b * g.across] = sum;
          }
          for (int64_t half = high / 2; half > 0; half /= 2)
            for (int64_t r = 0; r < half; ++r) sums[r] = sums[r] + sums[r + half];
          out[(m * row_blocks + b) * blocks + j] = kind == 0 ? total : double(sums[0]);
        }
      }
  }
}

// ---- integer codes for products of integers: a matrix quantized to nearest along one axis -----------

// Codes come out [rows, size], the summed axis last, whatever the layout of x: the layout products take.
// One scale a row, or with `known` (bits of a magnitude) one for all.
void int8_codes(const float* x, int8_t* codes, float* scales, int64_t rows, int64_t size, int by_column, float max,
                int whole, uint32_t known) {
  const bool serial = rows * size < kSerial;
  const auto scale_of = [max](uint32_t amax) {
    const float d = float_of(amax) / max;
    return d == 0.0f ? 1.0f : d;
  };
  const auto code = [max](float v, float d) {
    float q = v / d;
    q = q < -max ? -max : q > max ? max : q;
    q = (q + 12582912.0f) - 12582912.0f;  // 1.5 · 2**23: to nearest even, of either sign
    return q == q ? int8_t(int32_t(q)) : int8_t(0);
  };
  constexpr int64_t kTile = 64;
  const int64_t strip = by_column ? kTile : 1, strips = (rows + strip - 1) / strip;
#pragma omp parallel if (!serial)
  {
    std::vector<uint32_t> top(strip);
    std::vector<int8_t> tile(kTile * kTile);
#pragma omp for
    for (int64_t p = 0; p < strips; ++p) {
      const int64_t r0 = p * strip, n = std::min(strip, rows - r0);
      if (!by_column) {
        const float* row = x + r0 * size;
        uint32_t t = known;
        if (!whole)
          for (int64_t k = 0; k < size; ++k) {
            const uint32_t b = bits_of(row[k]) & 0x7fffffffu;
            t = t > b ? t : b;
          }
        const float d = scale_of(t);
        scales[r0] = d;
        int8_t* out = codes + r0 * size;
        for (int64_t k = 0; k < size; ++k) out[k] = code(row[k], d);
        continue;
      }
      std::fill(top.begin(), top.end(), known);
      if (!whole)
        for (int64_t k = 0; k < size; ++k) {
          const float* row = x + k * rows + r0;
          for (int64_t r = 0; r < n; ++r) {
            const uint32_t b = bits_of(row[r]) & 0x7fffffffu;
            top[r] = top[r] > b ? top[r] : b;
          }
        }
      for (int64_t r = 0; r < n; ++r) scales[r0 + r] = scale_of(top[r]);
      for (int64_t k0 = 0; k0 < size; k0 += kTile) {
        const int64_t w = std::min(kTile, size - k0);
        for (int64_t k = 0; k < w; ++k) {
          const float* row = x + (k0 + k) * rows + r0;
          for (int64_t r = 0; r < n; ++r) tile[k * kTile + r] = code(row[r], scales[r0 + r]);
        }
        for (int64_t r = 0; r < n; ++r)
          for (int64_t k = 0; k < w; ++k) codes[(r0 + r) * size + k0 + k] = tile[k * kTile + r];
      }
    }
  }
}

// out[m][n] = sums[m][n] · a[m] · b[n] (+ bias[n])
void rescale(const int32_t* sums, float* out, int64_t rows, int64_t columns, const float* a, const float* b,
             const float* bias) {
#pragma omp parallel for if (rows * columns >= kSerial)
  for (int64_t m = 0; m < rows; ++m) {
    const int32_t* in = sums + m * columns;
    float* to = out + m * columns;
    const float scale = a[m];
    if (bias)
      for (int64_t n = 0; n < columns; ++n) to[n] = float(in[n]) * scale * b[n] + bias[n];
    else
      for (int64_t n = 0; n < columns; ++n) to[n] = float(in[n]) * scale * b[n];
  }
}

}  // namespace

extern "C" {

void qgraph_int8_codes(const float* x, int8_t* codes, float* scales, int64_t rows, int64_t size, int by_column,
                       float max, int whole, uint32_t known) {
  int8_codes(x, codes, scales, rows, size, by_column, max, whole, known);
}

void qgraph_rescale(const int32_t* sums, float* out, int64_t rows, int64_t columns, const float* a, const float* b,
                    const float* bias) {
  rescale(sums, out, rows, columns, a, b, bias);
}

void qgraph_block_amax(const float* x, float* out, int64_t matrices, int64_t rows, int64_t size, int64_t across,
                       int64_t along, int by_column) {
  const Grid g{matrices, rows, size, across, along, by_column};
  by_column ? block_amax_columns(x, out, g) : block_amax(x, out, g);
}

void qgraph_round_blocks(const float* x, float* y, int64_t matrices, int64_t rows, int64_t size, int64_t across,
                         int64_t along, int by_column, const float* encode, const float* zero, const float* decode,
                         const float* whole, const int* facts, const float* limits, int count,
                         const float* values, const float* turns, int random, uint32_t seed, uint32_t site) {
  const Grid g{matrices, rows, size, across, along, by_column};
  const Element e{facts[0], facts[1], facts[2], facts[3], facts[4], facts[5], facts[6], facts[7], facts[8],
                  facts[9], facts[10], limits[0], limits[1], limits[2], count, values, turns};
  choose(x, y, g, {encode, zero, decode, whole}, e, random, seed, site);
}

void qgraph_block_error(const float* x, const float* y, double* out, int64_t matrices, int64_t rows, int64_t size,
                        int64_t across, int64_t along, int by_column, int kind) {
  block_error(x, y, out, {matrices, rows, size, across, along, by_column}, kind);
}

uint32_t qgraph_amax(const void* x, int64_t n, int is_bf16) {
  return is_bf16 ? largest<BF16>(x, n) : largest<F32>(x, n);
}

uint32_t qgraph_hadamard(const void* x, void* y, int is_bf16, int64_t outer, int64_t size, int64_t inner,
                         int n, const float* signs, int round_to_bf16) {
  return is_bf16 ? rotate<BF16>(x, y, outer, size, inner, n, signs, round_to_bf16)
                 : rotate<F32>(x, y, outer, size, inner, n, signs, round_to_bf16);
}

void qgraph_fake_quant(const void* x, void* y, int is_bf16, int64_t outer, int64_t size, int64_t inner,
                       int64_t rows, int64_t across, int64_t along, int whole, int is_int, int mantissa,
                       int min_exponent, float max, int scale, int top_exponent, uint32_t amax, int noise,
                       uint32_t seed, uint32_t site) {
  const Job job{outer, size, inner, across, along, rows, whole, amax, seed, site};
  const Format f{is_int, mantissa, min_exponent, max, scale, top_exponent};
  is_bf16 ? dispatch<BF16>(x, y, job, f, noise) : dispatch<F32>(x, y, job, f, noise);
}
}
