"""Where examples come from: folders, archives, tables, arrays, and data sets known by name."""

from palto.data.sources.arrays import numpy_archive
from palto.data.sources.dialogues import Dialogues, Turn, chitchat, dialogue_file
from palto.data.sources.elpv import elpv
from palto.data.sources.fashion_mnist import fashion_mnist
from palto.data.sources.images import ImageFiles, image_archive, image_folder
from palto.data.sources.named import Source, available, fetch_source, open_source
from palto.data.sources.penguins import penguins
from palto.data.sources.pictures import read_image
from palto.data.sources.speech import speech
from palto.data.sources.tables import TableDataset, TableEncoder, csv_table
