"""The report: a static site of the results, opened from a folder or behind any web server (`building`).

Nothing is imported here: the charts' package takes a second, and who only names a page (`naming`) needs none.
"""
