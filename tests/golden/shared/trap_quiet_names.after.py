# Names that are quiet in a block: a second group that starts in the same statement is left.
# block: SharedInput("Block", groups=(("logit_scale", "logit_shape"), ("scale", "shape")))
# site: line 9: linear shared-input: logit_scale logit_shape
# skip: line 9: linear: not together: `first, second = self.logit_scale(x) + self.logit_shape(x), self.scale(y) + self.shape(y)` calls another group, too


class Block(nn.Module):
    def forward(self, x, y):
        logit_scale, logit_shape = self.apply_shared(x, self.logit_scale, self.logit_shape)
        first, second = logit_scale + logit_shape, self.scale(y) + self.shape(y)
        return first * second
