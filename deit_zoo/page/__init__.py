"""The zoo as one page of HTML that needs no network: table, chart, and all that is known.

DataTables sorts and Chart.js draws; both lie in `vendored/` as npm has them, with their licences.
"""
