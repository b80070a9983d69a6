"""HiGen: video from text in two levels, a key frame and the clip around it, with one network (Qing et al., 2023)."""
