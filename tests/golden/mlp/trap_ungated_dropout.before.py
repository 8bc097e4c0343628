# Trap: dropout between the projections: bart, wav2vec2.
# block: MLP("Block")
# site: line 10: mlp call-alone: fc1
# site: line 12: mlp call-alone: fc2
# skip: line 11: mlp: not an MLP: `nn.functional.dropout(hidden_states, p=self.activation_dropout, training=self.training)` stands in between


class Block(nn.Module):
    def forward(self, hidden_states):
        hidden_states = self.activation_fn(self.fc1(hidden_states))
        hidden_states = nn.functional.dropout(hidden_states, p=self.activation_dropout, training=self.training)
        hidden_states = self.fc2(hidden_states)
        return hidden_states
