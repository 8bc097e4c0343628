# There is a loss already.
# block: LanguageModel("Model")
# skip: line 12: loss: no loss: `if labels is not None: loss = self.loss_function(logits, labels, self.vocab_size, **kwargs)` is not the first to give `loss` a value


class Model(PreTrainedModel):
    @can_return_tuple
    def forward(self, input_ids, labels=None, logits_to_keep=0, **kwargs):
        outputs = self.model(input_ids, **kwargs)
        loss = outputs.loss
        logits = self.lm_head(outputs[0])
        if labels is not None:
            loss = self.loss_function(logits, labels, self.vocab_size, **kwargs)

        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
        )
