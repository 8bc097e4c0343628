# Scaled and shaped by a helper of the class: qwen2_audio, voxtral.
# block: Attention("Block", o="out_proj")
# site: line 10: qkv qkv-together: q_proj k_proj v_proj
# site: line 13: o output-call: out_proj


class Block(nn.Module):
    def forward(self, hidden_states):
        bsz, tgt_len, _ = hidden_states.size()
        query_states = self._shape(self.q_proj(hidden_states) * self.scaling, tgt_len, bsz)
        key_states = self._shape(self.k_proj(hidden_states), -1, bsz)
        value_states = self._shape(self.v_proj(hidden_states), -1, bsz)
        return self.out_proj(attend(query_states, key_states, value_states))
