/* What the GPU tests and the GPU bench share: checked CUDA calls, random device memory, and a slow
 * double-precision linear that reads the same packed bytes by another route (one thread per output,
 * single bits, no matrix instructions). Programs of their own: a failure prints and exits 1. */
#ifndef TESTS_CUDA_SETUP_CUH
#define TESTS_CUDA_SETUP_CUH

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels/cuda/linear.h"

#define CUDA(call)                                                                                 \
    do {                                                                                           \
        cudaError_t cuda_error = (call);                                                           \
        if (cuda_error != cudaSuccess) {                                                           \
            printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(cuda_error));  \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)
#define OK(call)                                                                                   \
    do {                                                                                           \
        int ok_error = (call);                                                                     \
        if (ok_error) {                                                                            \
            printf("%s:%d: %s gave %d: %s\n", __FILE__, __LINE__, #call, ok_error,                 \
                   cudaGetErrorString(cudaGetLastError()));                                        \
            exit(1);                                                                               \
        }                                                                                          \
    } while (0)

/* Prints the reason and ends the program well when there is no device of the right kind. */
static inline void need_device(void) {
    int n = 0;
    cudaDeviceProp p;
    if (cudaGetDeviceCount(&n) != cudaSuccess || n == 0) {
        printf("skipped: no CUDA device\n");
        exit(0);
    }
    CUDA(cudaGetDeviceProperties(&p, 0));
    if (p.major != 9) {
        printf("skipped: compute capability %d.%d, these kernels are built for 9.0\n", p.major,
               p.minor);
        exit(0);
    }
    printf("%s, %d multiprocessors\n", p.name, p.multiProcessorCount);
}
static inline int multiprocessors(void) {
    int n;
    CUDA(cudaDeviceGetAttribute(&n, cudaDevAttrMultiProcessorCount, 0));
    return n;
}

template <typename T> static T *device_alloc(size_t n) {
    void *p;
    CUDA(cudaMalloc(&p, n * sizeof(T) + 16));
    return (T *)p;
}
template <typename T> static T *device_copy(const std::vector<T> &v) {
    T *p = device_alloc<T>(v.size());
    if (!v.empty())
        CUDA(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}
template <typename T> static std::vector<T> host_copy(const T *p, size_t n) {
    std::vector<T> v(n);
    CUDA(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
}

__host__ __device__ static inline uint32_t hash32(uint64_t i, uint32_t seed) {
    uint64_t z = (i + 1) * 0x9e3779b97f4a7c15ull + seed * 0xd1342543de82ef95ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return (uint32_t)(z >> 32);
}
/* Uniform in (-1, 1). */
__host__ __device__ static inline float uniform(uint64_t i, uint32_t seed) {
    return (float)(int32_t)hash32(i, seed) * (1.0f / 2147483648.0f);
}
static __global__ void fill_bits_kernel(uint32_t *p, size_t n, uint32_t seed) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x)
        p[i] = hash32(i, seed);
}
static __global__ void fill_half_kernel(__half *p, size_t n, float scale, uint32_t seed) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x)
        p[i] = __float2half_rn(scale * uniform(i, seed));
}
static __global__ void fill_float_kernel(float *p, size_t n, float offset, float scale,
                                         uint32_t seed) {
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n;
         i += (size_t)gridDim.x * blockDim.x)
        p[i] = offset + scale * uniform(i, seed);
}

/* q of column k of a set, put together from its planes. */
static __host__ __device__ inline int plane_value(const struct linear_planes *planes, int set,
                                                  int n_blocks, int k) {
    int v = 0, w = k % 256 / 32;
    for (int p = 0; p < 16; p++) {
        int lane = p % 8 * 4 + w % 4, word = p / 8 * 2 + w / 4;
        const uint32_t *b = (const uint32_t *)planes[(size_t)set * n_blocks + k / 256].lane;
        int bit = (int)(b[lane * 4 + word] >> (k % 32) & 1);
        v += p == 15 ? -bit * 32768 : bit << p;
    }
    return v;
}
/* Element (row, k) of a packed base: the inverse of linear_pack, written from its definition. */
static __host__ __device__ inline size_t packed_at(int tile, int row, int k, int n_blocks) {
    int in = k % 32, t = in / 8, step = k / 32 * 2 + in % 8 / 4;
    int reg = row / 8 + 2 * (in % 4 / 2), lane = row % 8 * 4 + t;
    return (((size_t)tile * n_blocks * 16 + step) * 32 + lane) * 8 + reg * 2 + in % 2;
}

/* Word of a sign plane that holds (row n, column k); docs/format.md, "Tiles". */
__device__ static inline size_t sign_word(int n, int k, int n_blocks) {
    int g = n % 16, w = k % 256 / 32, lane = g % 8 * 4 + w % 4;
    return ((size_t)(n / 16) * n_blocks + k / 256) * 128 + lane * 4 + (w / 4 * 2 + g / 8);
}

/* x of a row as the linear gets it. */
__device__ static inline double input_at(const linear_args &a, int row, int k) {
    int blocks = (a.shape.n_k + 255) / 256;
    return (double)__half2float(a.in.x[linear_x_at(blocks, row, k, 0)]) +
           (double)__half2float(a.in.x[linear_x_at(blocks, row, k, 1)]);
}
/* Output n of a part: the planes of one job. */
__device__ static inline double reference_signs(const linear_args &a, const linear_job &job,
                                                int row, int part, int n) {
    int set = job.first_set[part] + row - job.first_row, blocks = (a.shape.n_k + 255) / 256;
    double sum = 0;
    for (int k = 0; k < a.shape.n_k; k++) {
        uint32_t word = job.bits[part][sign_word(n, k, blocks)];
        double q = plane_value(a.in.planes, set, blocks, k);
        double v = q * (double)a.in.planes[(size_t)set * blocks + k / 256].scale;
        sum += word >> (k % 32) & 1 ? v : -v;
    }
    return sum * (double)job.row[part][n];
}

/* out[row][i] = the linear's output sample[i] of a row, in double; dense parts included. */
static __global__ void reference_kernel(linear_args a, const int *sample, int n_sample,
                                        double *out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
    if (i >= n_sample || row >= a.batch->n_rows)
        return;
    int n = sample[i], part = 0, blocks = (a.shape.n_k + 255) / 256;
    while (n >= a.shape.part_rows[part])
        n -= a.shape.part_rows[part++];
    double y = 0;
    if (a.batch->dense[row] >> part & 1) {
        const linear_dense *d = a.dense;
        while (row < d->first_row || row >= d->first_row + d->n_rows)
            d++;
        for (int k = 0; k < a.shape.n_k; k++)
            y +=
                (double)__half2float(d->w[part][(size_t)n * a.shape.n_k + k]) * input_at(a, row, k);
        out[(size_t)row * n_sample + i] = y;
        return;
    }
    int tile = a.shape.first_tile[part] + n / 16;
    for (int k = 0; k < a.shape.n_k; k++)
        y += (double)__half2float(((const __half *)a.base)[packed_at(tile, n % 16, k, blocks)]) *
             input_at(a, row, k);
    for (int j = 0; j < a.batch->n_phases * a.batch->n_jobs; j++) {
        const linear_job &job = a.jobs[j];
        if (row < job.first_row || row >= job.first_row + job.n_rows)
            continue;
        if (job.bits[part])
            y += reference_signs(a, job, row, part, n);
        const linear_pair *pair = a.pairs && j < a.batch->n_jobs ? a.pairs + j : NULL;
        if (pair && pair->b[part])
            for (int r = 0; r < pair->rank[part]; r++)
                y += (double)__half2float(pair->b[part][(size_t)n * pair->rank[part] + r]) *
                     (double)a.in.u[(size_t)row * a.in.ld_u + pair->first_u[part] + r];
    }
    out[(size_t)row * n_sample + i] = y;
}

#endif
