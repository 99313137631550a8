// One tree from a draft and the chain of another source; reference: specx/kernels/drafts_reference.py.
#pragma once

#include <cstdint>
#include <vector>

#include "free_trie.hpp"

using DraftNodes = std::vector<FreeTrie::Node>;  // parents first

// `draft` and the chain `tokens` (n,) from below its root, as one tree, best first. hazards (n,) are the
// probabilities that a token is right if those before it are; `source` is that of nodes that are new.
DraftNodes merge_chain(const DraftNodes& draft, const std::vector<int32_t>& tokens,
                       const std::vector<double>& hazards, uint8_t source);

// `draft` with the tree `below` under the node that the tokens `path` lead to, which has no children, best first;
// probabilities of `below` are given that the path is right.
DraftNodes graft(const DraftNodes& draft, const std::vector<int32_t>& path, const DraftNodes& below);

// The first child of the node that the tokens `path` lead to, which is its most promising one: its token, -1 if
// there is none.
int32_t token_after(const DraftNodes& draft, const std::vector<int32_t>& path);

// The verified row of the node with this token below the row `row`, where 0 is the root and i + 1 node i; 0 if there
// is none.
size_t child_row(const DraftNodes& draft, size_t row, int32_t token);

// The path from the root to the node `leaf`.
DraftNodes path_to(const DraftNodes& draft, size_t leaf);
