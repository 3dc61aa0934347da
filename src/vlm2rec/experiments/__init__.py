"""The paper's tables and figures on any data set.

`paper` says which there are, `rows` what stands in them (in terms of `spec` and `charts`); `plan` makes runs of them,
`runner`, `schedule` and `pool` run these, `lines`, `tables`, `ordering` and `datasets` write the pages, `estimate` and
`sizes` say beforehand what it takes, and `shop` is the data for those who bring none.
"""
