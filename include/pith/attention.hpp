#pragma once

// Attention over cached rows.
#include <pith/attention/attend.hpp>   // softmax(q Kᵀ / √d) V for one token or many, and who watches it
#include <pith/attention/kv_view.hpp>  // cached rows as attend() takes them
#include <pith/attention/q8.hpp>       // rows of eight bits
#include <pith/attention/rope.hpp>     // rotary position embeddings, and how they are stretched
#include <pith/attention/shape.hpp>    // heads, kv heads, head_dim
