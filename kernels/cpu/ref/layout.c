/* Activations are row-major on the CPU: conversion at the edges is a copy. */
#include "kernels/cpu/ref/ref.h"

#include <string.h>

static size_t activation_bytes(DType act, int64_t rows, int64_t columns) {
    return (size_t)rows * (size_t)columns * dtype_size(act);
}

static void to_rows(const Exec *exec, const void *activation, int64_t rows, int64_t columns, void *row_major) {
    memcpy(row_major, activation, activation_bytes(exec->config.act, rows, columns));
}

static void from_rows(const Exec *exec, const void *row_major, int64_t rows, int64_t columns, void *activation) {
    memcpy(activation, row_major, activation_bytes(exec->config.act, rows, columns));
}

void ref_layout(Backend *backend) {
    backend->activation_bytes = activation_bytes;
    backend->to_rows = to_rows;
    backend->from_rows = from_rows;
}
