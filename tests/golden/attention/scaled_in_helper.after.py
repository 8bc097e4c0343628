# Scaled and shaped by a helper of the class: qwen2_audio, voxtral.
# block: Attention("Block", o="out_proj")
# site: line 10: qkv qkv-together: q_proj k_proj v_proj
# site: line 13: o output-call: out_proj


class Block(nn.Module):
    def forward(self, hidden_states):
        bsz, tgt_len, _ = hidden_states.size()
        q, k, v = self.apply_qkv(hidden_states)
        query_states = self._shape(q * self.scaling, tgt_len, bsz)
        key_states = self._shape(k, -1, bsz)
        value_states = self._shape(v, -1, bsz)
        return self.apply_o(attend(query_states, key_states, value_states))
