# Upstream calls key, value, query: the names stay right and the order of draws is reported.
# block: Attention("Block", q="query", k="key", v="value", o="dense")
# site: line 9: qkv qkv-together: key value query
# skip: o: absent: `self.dense` is never called


class Block(nn.Module):
    def forward(self, hidden_states):
        key_layer = self.key(hidden_states).view(self.shape).transpose(1, 2)
        value_layer = self.value(hidden_states).view(self.shape).transpose(1, 2)
        query_layer = self.query(hidden_states).view(self.shape).transpose(1, 2)
        return attend(query_layer, key_layer, value_layer)
