"""An EAGLE-3 head run by libllama through ctypes, as llama.cpp's common/speculative.cpp does it."""

import ctypes

import numpy as np

NEXTN, GET_NEXTN = (
    "_Z26llama_set_embeddings_nextnP13llama_contextbb",
    "_Z26llama_get_embeddings_nextnP13llama_context",
)


class LlamaHead:
    """A head with an embedding of its own, or with that of the target whose context is given."""

    def __init__(self, lib, path, n_ctx=256, target_context=None):
        self.lib, self.so = lib, lib.llama_cpp._lib
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(str(path).encode(), params)
        assert self.model, "llama.cpp does not load it"
        params = lib.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_threads = n_ctx, n_ctx, n_ctx, 1
        params.n_threads_batch = 1
        if target_context is not None:
            params.ctx_other = target_context
        self.ctx = lib.llama_init_from_model(self.model, params)
        assert self.ctx
        set_nextn, self.get_nextn = self.so[NEXTN], self.so[GET_NEXTN]
        set_nextn.argtypes, set_nextn.restype = [ctypes.c_void_p, ctypes.c_bool, ctypes.c_bool], None
        self.get_nextn.argtypes, self.get_nextn.restype = [ctypes.c_void_p], ctypes.POINTER(ctypes.c_float)
        set_nextn(self.ctx, True, True)
        self.width = lib.llama_model_n_embd(self.model)
        self.columns = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))

    def encode(self, features):
        """(n, d) hidden states of features (n, 3 d_t) float32."""
        n = len(features)
        self._run(self.lib.llama_encode, np.zeros(n, np.int32), features, 0, tokens=False)
        return self._nextn(n)

    def step(self, tokens, hidden, position):
        """Logits (n, V) and hidden states (n, d) of consecutive pairs from `position` on."""
        n = len(tokens)
        self._run(self.lib.llama_decode, tokens, hidden, position, tokens=True)
        logits = np.ctypeslib.as_array(self.lib.llama_get_logits(self.ctx), (n * self.columns,))
        return logits.reshape(n, self.columns).copy(), self._nextn(n)

    def rewind(self, length):
        """Forget positions from `length` on."""
        assert self.lib.llama_memory_seq_rm(self.lib.llama_get_memory(self.ctx), 0, length, -1)

    def close(self):
        self.lib.llama_free(self.ctx)
        self.lib.llama_model_free(self.model)

    def _nextn(self, n):
        return (
            np.ctypeslib.as_array(self.get_nextn(self.ctx), (n * self.width,)).reshape(n, self.width).copy()
        )

    def _run(self, call, ids, rows, position, *, tokens):
        n, rows = len(ids), np.ascontiguousarray(rows, np.float32)
        batch = self.lib.llama_batch_init(n, rows.shape[1], 1)
        named = np.ascontiguousarray(ids, np.int32)
        ctypes.memmove(batch.embd, rows.ctypes.data, rows.nbytes)
        if tokens:
            batch.token = named.ctypes.data_as(type(batch.token))
        batch.n_tokens = n
        for i in range(n):
            batch.pos[i], batch.n_seq_id[i], batch.logits[i] = position + i, 1, 1
            batch.seq_id[i][0] = 0
        code = call(self.ctx, batch)
        batch.token = None
        self.lib.llama_batch_free(batch)
        assert code == 0, code
