"""The paper's tables on any data set: which rows they have (`paper`), how they are run, how they are written."""
