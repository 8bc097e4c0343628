# As git: not all logits are handed on.
# block: LanguageModel("Model")
# skip: line 14: loss: no loss: `self.loss_function(logits[:, 1:], labels, self.vocab_size, **kwargs)` is not given `logits` as they are


class Model(PreTrainedModel):
    @can_return_tuple
    def forward(self, input_ids, labels=None, logits_to_keep=0, **kwargs):
        outputs = self.model(input_ids, **kwargs)
        logits = self.lm_head(outputs[0])

        loss = None
        if labels is not None:
            loss = self.loss_function(logits[:, 1:], labels, self.vocab_size, **kwargs)

        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
        )
