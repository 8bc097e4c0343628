# A value projection that some layers do not have: diffusion_gemma, gemma4.
# block: Attention("Block")
# site: line 12: qkv call-alone: q_proj
# site: line 13: qkv call-alone: k_proj
# site: line 14: qkv call-alone: v_proj
# site: line 15: o output-call: o_proj
# skip: line 14: qkv: not together: `self.v_proj(hidden_states)` is evaluated conditionally, or in the header of a statement


class Block(nn.Module):
    def forward(self, hidden_states):
        query_states = self.apply_linear(self.q_proj, hidden_states).view(self.shape)
        key_states = self.apply_linear(self.k_proj, hidden_states).view(self.shape)
        value_states = self.apply_linear(self.v_proj, hidden_states).view(self.shape) if self.v_proj is not None else key_states
        return self.apply_o(attend(query_states, key_states, value_states))
