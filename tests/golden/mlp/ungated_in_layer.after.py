# No gate, in a layer with the residual around it: opt.
# block: MLP("Block")
# site: line 10: mlp ungated-mlp: fc1 activation_fn fc2


class Block(nn.Module):
    def forward(self, hidden_states):
        residual = hidden_states
        hidden_states = self.final_layer_norm(hidden_states)
        hidden_states = self.apply_mlp(hidden_states)
        hidden_states = nn.functional.dropout(hidden_states, p=self.dropout, training=self.training)
        hidden_states = residual + hidden_states
        return hidden_states
