#pragma once

// The layers of a network without attention, for inference.
#include <pith/nn/activation.hpp>    // SiLU, GELU, ReLU, tanh
#include <pith/nn/bf16.hpp>          // linear layers that round what they multiply to bfloat16
#include <pith/nn/compute.hpp>       // whether layers round what they multiply
#include <pith/nn/embedding.hpp>     // a table of token embeddings
#include <pith/nn/feed_forward.hpp>  // MLP and SwiGLU
#include <pith/nn/int4.hpp>          // linear layers with weights of four bits
#include <pith/nn/int8.hpp>          // linear layers with weights of eight bits
#include <pith/nn/linear.hpp>        // y = x Wᵀ + b, over your matrix, its own, or packed panels
#include <pith/nn/linear_op.hpp>     // what a linear layer is: the concept all others take
#include <pith/nn/matmul.hpp>        // y = x Wᵀ
#include <pith/nn/norm.hpp>          // RMSNorm, LayerNorm
#include <pith/nn/packed.hpp>        // weights as panels, in 32 or 16 bits
#include <pith/nn/softmax.hpp>       // softmax and softmax_n (a weight for attending to nothing)
