"""What the training loops are made of; the loops themselves are `medssl.training` and `few_labels.finetuning`.

recipe           optimiser, schedule and batch, said once
pretrain_config  all settings of a pre-training run
sampling         which samples a step sees, the same whatever the number of workers
optimisation     optimiser and precision of a recipe, seeds of a step
averaging        moving averages of weights
distributed      several processes as one batch
transfer         encoder files: written, read, loaded with a report
"""
