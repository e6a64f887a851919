"""Sources of pictures with ground truth: folders, idx files, CSV, data-set objects, synthetic scenes."""
