// The operations as Python classes.
#pragma once

#include <nanobind/nanobind.h>

namespace smidgen {

// Adds a class for each operation, with keyword-only arguments that have no defaults: an unknown or a missing name
// is a TypeError. Also adds `activations()`, the names of the activations.
void bind_operations(nanobind::module_&);

}  // namespace smidgen
