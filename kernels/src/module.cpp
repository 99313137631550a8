// The Python module: each subject binds itself.
#include <nanobind/nanobind.h>

namespace nb = nanobind;

void bind_sampling(nb::module_& m);
void bind_draft(nb::module_& m);
void bind_drafts(nb::module_& m);
void bind_foresight(nb::module_& m);
void bind_chain(nb::module_& m);
void bind_objective(nb::module_& m);
void bind_regimes(nb::module_& m);
void bind_bandwidth(nb::module_& m);
void bind_peak(nb::module_& m);
void bind_distinct(nb::module_& m);
void bind_pieces(nb::module_& m);
void bind_vocabulary(nb::module_& m);
void bind_dot_rows(nb::module_& m);
void bind_layer_tap(nb::module_& m);

NB_MODULE(_native, m) {
    nb::set_leak_warnings(false);  // drafts that are constants of Python modules live as long as the process
    m.attr("INTERFACE") = INTERFACE;
    bind_draft(m);
    bind_sampling(m);
    bind_drafts(m);
    bind_foresight(m);
    bind_chain(m);
    bind_objective(m);
    bind_regimes(m);
    bind_bandwidth(m);
    bind_peak(m);
    bind_distinct(m);
    bind_pieces(m);
    bind_vocabulary(m);
    bind_dot_rows(m);
    bind_layer_tap(m);
}
