"""A model of one's own from a few annotated slices.

teaching           cases of a store as cases to learn from
annotated_samples  patches around what is annotated; who is held out
augmentation       strong changes for tiny sets
segmentation_loss  only where somebody vouches
carried_labels     what annotated slices say about the others
finetuning         the loop, and automatic settings
starting           what a run begins with: an encoder, an earlier model, random weights
base_model         the weights of an earlier model in a new one
footprint          what training takes of memory, told before
finetune_run       the loop in a run folder, its result in the model store
segmenter          a trained model and its file
suitability        is a volume of the kind that a model has learnt from
model_store        versions, lineage, roll back
tiling             a network over a whole scan
"""
