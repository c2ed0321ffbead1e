"""A model of one's own from a few annotated slices.

teaching           cases of a store as cases to learn from
annotated_samples  patches around what is annotated; who is held out
augmentation       strong changes for tiny sets
segmentation_loss  only where somebody vouches
finetuning         the loop, and automatic settings
finetune_run       the loop in a run folder, its result in the model store
segmenter          a trained model and its file
model_store        versions, lineage, roll back
tiling             a network over a whole scan
"""
