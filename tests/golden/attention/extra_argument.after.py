# Projections that take more than their input: moshi.
# block: Attention("Block")
# skip: line 12: qkv: not together: `self.q_proj(hidden_states, codebook_idx)` does not take exactly one positional argument
# skip: line 12: qkv: `self.q_proj(hidden_states, codebook_idx)` does not take exactly one positional argument
# skip: line 13: qkv: `self.k_proj(hidden_states, layer_idx=codebook_idx)` does not take exactly one positional argument
# skip: line 14: qkv: `self.v_proj(*hidden_states)` does not take exactly one positional argument
# skip: line 15: o: `self.o_proj(input=attend(query_states, key_states, value_states))` does not take exactly one positional argument


class Block(nn.Module):
    def forward(self, hidden_states, codebook_idx=None):
        query_states = self.q_proj(hidden_states, codebook_idx)
        key_states = self.k_proj(hidden_states, layer_idx=codebook_idx)
        value_states = self.v_proj(*hidden_states)
        return self.o_proj(input=attend(query_states, key_states, value_states))
