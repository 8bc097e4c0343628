# Queries scaled in place after all three calls: longformer, led.
# block: Attention("Block", q="query", k="key", v="value")
# site: line 12: qkv qkv-together: query key value
# skip: o: absent: `self.o_proj` is never called


class Block(nn.Module):
    def forward(self, hidden_states):
        hidden_states = hidden_states.transpose(0, 1)

        # project hidden states
        q, k, v = self.apply_qkv(hidden_states)
        query_vectors = q
        key_vectors = k
        value_vectors = v

        # normalize query
        query_vectors /= math.sqrt(self.head_dim)
        return attend(query_vectors, key_vectors, value_vectors)
