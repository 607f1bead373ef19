/* The host twin of NVIDIA's header of this name: a .cu file of wring compiled by a C++ compiler finds here the part of
 * CUDA C++ and of the runtime API that wring may use, on a simulated device (tests/simt/README.md).
 *
 * What is not here is not to be used in kernels, or is to be added here first: __shared__, <<< >>> and atomics on floats
 * are left out for good (kernels/cuda/cu.cuh says why). C++17; in C there is nothing in it.
 */
#ifndef WRING_TESTS_SIMT_CUDA_RUNTIME_H
#define WRING_TESTS_SIMT_CUDA_RUNTIME_H

#ifdef __cplusplus
#    include <simt_types.cuh>

#    include <simt_host.cuh>

#    include <simt_device.cuh>

#    include <simt_math.cuh>
#endif

#endif
