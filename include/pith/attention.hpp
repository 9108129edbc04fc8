#pragma once

// Attention over cached rows.
#include <pith/attention/attend.hpp>        // softmax(q Kᵀ / √d) V for one token or many, with an observer
#include <pith/attention/kv_storage.hpp>    // how rows are stored: numbers, codes, rotated, keys and values apart
#include <pith/attention/kv_view.hpp>       // the view of cached rows that attend() reads
#include <pith/attention/q4.hpp>            // rows of 4-bit codes
#include <pith/attention/q8.hpp>            // rows of 8-bit numbers
#include <pith/attention/reads.hpp>         // how many rows attend() read
#include <pith/attention/rope.hpp>          // rotary position embeddings
#include <pith/attention/rope_options.hpp>  // their kinds, and their scaling for long texts
#include <pith/attention/scout.hpp>         // 8-bit copies of keys that bound their logits
#include <pith/attention/shape.hpp>         // heads, kv heads, head_dim
