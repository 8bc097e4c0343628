# Queries of one input, keys and values of another: hubert, lightglue.
# block: Attention("Block")
# site: line 12: qkv call-alone: q_proj
# site: line 13: qkv call-alone: k_proj
# site: line 14: qkv call-alone: v_proj
# site: line 15: o output-call: o_proj
# skip: line 13: qkv: not together: `self.k_proj(encoder_hidden_states)` takes another input than `self.q_proj(hidden_states)`


class Block(nn.Module):
    def forward(self, hidden_states, encoder_hidden_states):
        query_states = self.apply_linear(self.q_proj, hidden_states).view(self.shape).transpose(1, 2)
        key_states = self.apply_linear(self.k_proj, encoder_hidden_states).view(self.shape).transpose(1, 2)
        value_states = self.apply_linear(self.v_proj, encoder_hidden_states).view(self.shape).transpose(1, 2)
        return self.apply_o(attend(query_states, key_states, value_states))
