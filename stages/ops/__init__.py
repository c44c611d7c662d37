"""Operations on images and tensors, and how exactly they are computed."""
