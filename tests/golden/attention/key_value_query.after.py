# Upstream calls key, value, query: the names stay right and the order of draws is reported.
# block: Attention("Block", q="query", k="key", v="value", o="dense")
# site: line 9: qkv qkv-together: key value query
# skip: o: absent: `self.dense` is never called


class Block(nn.Module):
    def forward(self, hidden_states):
        q, k, v = self.apply_qkv(hidden_states)
        key_layer = k.view(self.shape).transpose(1, 2)
        value_layer = v.view(self.shape).transpose(1, 2)
        query_layer = q.view(self.shape).transpose(1, 2)
        return attend(query_layer, key_layer, value_layer)
