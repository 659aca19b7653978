<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>
<qgis version="3.22" styleCategories="Symbology">
  <renderer-v2 type="graduatedSymbol" attr="mean_probability" graduatedMethod="GraduatedColor" enableorderby="0">
    <ranges>
      <range symbol="0" lower="0" upper="0.6" label="below 0.6" render="true"/>
      <range symbol="1" lower="0.6" upper="0.8" label="0.6 to 0.8" render="true"/>
      <range symbol="2" lower="0.8" upper="1" label="above 0.8" render="true"/>
    </ranges>
    <symbols>
      <symbol name="0" type="fill" alpha="1"><layer class="SimpleFill" enabled="1">
        <prop k="color" v="255,210,0,60"/><prop k="outline_color" v="255,210,0,255"/><prop k="outline_width" v="0.5"/><prop k="style" v="solid"/>
      </layer></symbol>
      <symbol name="1" type="fill" alpha="1"><layer class="SimpleFill" enabled="1">
        <prop k="color" v="255,128,0,60"/><prop k="outline_color" v="255,128,0,255"/><prop k="outline_width" v="0.5"/><prop k="style" v="solid"/>
      </layer></symbol>
      <symbol name="2" type="fill" alpha="1"><layer class="SimpleFill" enabled="1">
        <prop k="color" v="255,0,0,60"/><prop k="outline_color" v="255,0,0,255"/><prop k="outline_width" v="0.5"/><prop k="style" v="solid"/>
      </layer></symbol>
    </symbols>
  </renderer-v2>
</qgis>
