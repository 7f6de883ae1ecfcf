"""`purifier fix`: a model of the reader's purified on a folder of images, with a report.

`weights.load` brings such a network back; `measure.compare` is what the report measures.
"""
