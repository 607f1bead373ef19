/* The CUDA backend's door, for C. Built only with WRING_CUDA. */
#ifndef WRING_KERNELS_CUDA_CUDA_H
#define WRING_KERNELS_CUDA_CUDA_H

#include "kernels/backend.h"

/* Opens GPU `device` (0 ...). ERR_DEVICE: no driver, no GPU, no such GPU, or one older than sm_80: the error says which. */
int cuda_open(struct be **out, const struct be_config *c, int device, struct err *e) WARN_UNUSED;

#endif
