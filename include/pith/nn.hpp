#pragma once

#include <pith/nn/activation.hpp>
#include <pith/nn/embedding.hpp>
#include <pith/nn/feed_forward.hpp>
#include <pith/nn/int8.hpp>
#include <pith/nn/linear.hpp>
#include <pith/nn/linear_op.hpp>
#include <pith/nn/matmul.hpp>
#include <pith/nn/norm.hpp>
#include <pith/nn/packed.hpp>
#include <pith/nn/softmax.hpp>
