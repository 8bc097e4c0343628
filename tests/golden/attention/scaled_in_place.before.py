# Queries scaled in place after all three calls: longformer, led.
# block: Attention("Block", q="query", k="key", v="value")
# site: line 12: qkv qkv-together: query key value
# skip: o: absent: `self.o_proj` is never called


class Block(nn.Module):
    def forward(self, hidden_states):
        hidden_states = hidden_states.transpose(0, 1)

        # project hidden states
        query_vectors = self.query(hidden_states)
        key_vectors = self.key(hidden_states)
        value_vectors = self.value(hidden_states)

        # normalize query
        query_vectors /= math.sqrt(self.head_dim)
        return attend(query_vectors, key_vectors, value_vectors)
