#pragma once

#include <pith/attention/attend.hpp>
#include <pith/attention/kv_view.hpp>
#include <pith/attention/rope.hpp>
#include <pith/attention/shape.hpp>
